"""GGUF files of any shape in seconds: random blocks with planted activity, for measuring speed without a trained model.

Each token's embedding is large in one of eight runs of 32 channels and small elsewhere; every row of gate, up and
predictor has its answer to each of the eight in its first eight blocks. So a given share of the neurons has an open
gate, fires, or is predicted (all that fire, and more), others for each of the eight kinds of token. Files are ours with
predictors, llama.cpp's, or PowerInfer's.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ...model.files.gguf import ggml
from ...model.files.gguf.file import SPARSE
from ...model.tensor_names import FFN, PREDICTOR, Place, gguf_name
from ...quant.gguf.tensor_plan import TensorPlan
from ...quant.gguf.values import Value, array, f32, text, u32
from ...quant.gguf.writer import ALIGNMENT, header

KINDS, RUN = 8, 32  # kinds of token; channels that mark one, which is also the length of a block
SMALLEST_WIDTH = KINDS * RUN
TYPES = ("Q4_0", "Q8_0")
"""Types in which rows can be planted."""
_POOL_BLOCKS = (1 << 20) - 3  # odd, so that no two tensors begin alike
_SCALE_OFFSETS = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
_ARCHITECTURES = {"sparse": SPARSE, "llama.cpp": "llama", "powerinfer": "bamboo"}
Blocks = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Mistral-like or, with experts, Mixtral-like model; the defaults are the 7B's."""

    layers: int = 32
    width: int = 4096
    neurons: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 32000
    experts: int = 0
    experts_per_token: int = 0
    rank: int = 512
    """Of the predictors."""
    type_name: str = "Q4_0"
    """Of the weights; also Q4_K, in which nothing is planted."""
    predictor_type: str = "Q8_0"
    gate_open: float = 0.20
    """Share of the neurons whose gate is positive."""
    firing: float = 0.10
    predicted: float = 0.12
    attention_share: float | None = None
    """Of attention's outputs, that predicted mode keeps; None: all of them."""

    @property
    def layer_bytes(self) -> int:
        """The size of one layer's tensors in our own file."""
        return sum(plan.size_bytes for plan in _tensors("sparse", self) if plan.name.startswith("blk.0."))


def write_planted(path: Path, target: str, shape: Shape, seed: int = 0) -> Path:
    """Write a file for ``target`` (`sparse`, `llama.cpp` or `powerinfer`)."""
    plans = list(_tensors(target, shape))
    with path.open("wb") as stream:
        stream.write(header(_metadata(target, shape), plans, b"PWRI" if target == "powerinfer" else b"GGUF"))
        source = _Source(shape, seed)
        for plan in plans:
            source.write(stream, plan)
            stream.write(b"\0" * (-plan.size_bytes % ALIGNMENT))
        stream.flush()
        os.fsync(stream.fileno())
        if hasattr(os, "posix_fadvise"):  # whoever runs it reads it, into such pages as that engine asks for
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


def _tensors(target: str, s: Shape) -> Iterator[TensorPlan]:
    kind, D, F, R = s.type_name, s.width, s.neurons, s.rank
    heads_D, kv_D = s.heads * s.head_dim, s.kv_heads * s.head_dim
    by_inputs = target == "sparse" and s.attention_share is not None
    mixed = kind == "Q4_K" and target == "llama.cpp"  # Q4_K_M: half of attn_v and ffn_down, and the head, in Q6_K

    def plan(role: str, layer: int | None, shape: tuple[int, ...], type_name: str = kind) -> TensorPlan:
        expert = 0 if s.experts and role in (*FFN, *PREDICTOR) else None
        turned = role == "ffn_down" and target != "llama.cpp"
        turned |= role == "attn_output" and by_inputs
        return TensorPlan(
            name=gguf_name(Place(role, layer, expert), suffix="_t" if turned else ""), type_name=type_name,
            shape=shape if expert is None else (s.experts, *shape), source=list,
        )  # fmt: skip

    yield plan("token_embd", None, (s.vocab, D))
    for layer in range(s.layers):
        more = "Q6_K" if mixed and (layer < s.layers // 8 or layer >= 7 * s.layers // 8 or layer % 3 == 2) else kind
        yield plan("attn_norm", layer, (D,), "F32")
        yield plan("attn_q", layer, (heads_D, D))
        yield plan("attn_k", layer, (kv_D, D))
        yield plan("attn_v", layer, (kv_D, D), more)
        yield plan("attn_output", layer, (heads_D, D) if by_inputs else (D, heads_D))
        yield plan("ffn_norm", layer, (D,), "F32")
        if s.experts:
            yield plan("router", layer, (s.experts, D), "F32")
        yield plan("ffn_gate", layer, (F, D))
        yield plan("ffn_up", layer, (F, D))
        if target == "llama.cpp":
            yield plan("ffn_down", layer, (D, F), more)
            continue
        yield plan("ffn_down", layer, (F, D))
        yield plan("fc1", layer, (R, D), s.predictor_type)
        yield plan("fc2", layer, (F, R), s.predictor_type)
    yield plan("output_norm", None, (D,), "F32")
    yield plan("output", None, (s.vocab, D), "Q6_K" if mixed else kind)


def _metadata(target: str, s: Shape) -> dict[str, Value]:
    architecture = _ARCHITECTURES[target]
    keys = {
        "context_length": u32(4096), "embedding_length": u32(s.width), "block_count": u32(s.layers),
        "feed_forward_length": u32(s.neurons), "attention.head_count": u32(s.heads), "vocab_size": u32(s.vocab),
        "attention.head_count_kv": u32(s.kv_heads), "attention.layer_norm_rms_epsilon": f32(1e-5),
        "attention.key_length": u32(s.head_dim), "attention.value_length": u32(s.head_dim),
        "rope.dimension_count": u32(s.head_dim), "rope.freq_base": f32(10000.0),
    }  # fmt: skip
    if s.experts:
        keys |= {"expert_count": u32(s.experts), "expert_used_count": u32(s.experts_per_token)}
    if target == "sparse":
        ffns = s.layers * max(1, s.experts)
        keys |= {"format_version": u32(1), "activation": text("drelu"), "source_fingerprint": text("")}
        keys |= {
            "predictor.threshold": array("f32", [0.0] * ffns), "predictor.rank": array("u32", [s.rank] * ffns),
        }  # fmt: skip
        if s.attention_share is not None:
            keys |= {"format_version": u32(2), "features": array("str", ["attention_share"])}
            keys |= {"attention.output_share": f32(s.attention_share)}
    found = {"general.architecture": text(architecture), "general.name": text("random")}
    found |= {f"{architecture}.{name}": value for name, value in keys.items()}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"t{i}" for i in range(s.vocab - len(tokens))]
    types = [2, 3, 3] + [6] * 256 + [1] * (s.vocab - 259)
    return found | {
        "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": array("str", tokens),
        "tokenizer.ggml.scores": array("f32", [float(-i) for i in range(s.vocab)]),
        "tokenizer.ggml.token_type": array("i32", types), "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2), "tokenizer.ggml.unknown_token_id": u32(0),
    }  # fmt: skip


class _Source:
    """Random blocks with sane scales, drawn once a type, and what is planted on them."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.pools: dict[tuple[str, float], Blocks] = {}
        self.chance: dict[str, npt.NDArray[np.float64]] = {}
        """Layer -> of each neuron [rows, KINDS] a number that says for which kinds of token it fires."""

    def write(self, stream: BinaryIO, plan: TensorPlan) -> None:
        """The tensor's bytes."""
        kind, rows = plan.type_name, int(np.prod(plan.shape[:-1], dtype=np.int64))
        if kind == "F32":
            router = "ffn_gate_inp" in plan.name
            values = self.rng.standard_normal(plan.shape, np.float32) if router else np.ones(plan.shape, np.float32)
            stream.write(values.tobytes())
            return
        block, planted = ggml.TYPES[kind], self._plants(plan.name, rows)
        per_row = plan.shape[-1] // block.weights
        at_once = max(1, _POOL_BLOCKS // 4 // per_row)
        factor = 1e-4 if "ffn_down" in plan.name or "attn_output" in plan.name else 1e-3
        for first in range(0, rows, at_once):
            count = min(at_once, rows - first)
            blocks = self._blocks(kind, count * per_row, factor).reshape(count, per_row, block.size_bytes)
            if planted is not None and kind in TYPES:
                blocks = blocks.copy()
                _plant(blocks, planted[first : first + count], kind, plan.name)
            stream.write(np.ascontiguousarray(blocks).data)

    def _blocks(self, kind: str, count: int, factor: float) -> Blocks:
        if (kind, factor) not in self.pools:
            size = ggml.TYPES[kind].size_bytes
            pool = self.rng.integers(0, 256, (_POOL_BLOCKS, size), np.uint8)
            for offset in _SCALE_OFFSETS[kind]:
                shrink = 1 / 32 if kind.endswith("_K") else 1 / 16 if kind == "Q8_0" else 1  # their levels are larger
                scales = self.rng.uniform(0.8, 1.6, _POOL_BLOCKS) * max(factor * shrink, 7e-5)
                scales *= self.rng.choice([-1, 1], _POOL_BLOCKS)  # levels are not zero in the mean
                pool[:, offset : offset + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
            self.pools[kind, factor] = pool
        pool = self.pools[kind, factor]
        start = int(self.rng.integers(_POOL_BLOCKS))
        found: Blocks = pool[np.arange(start, start + count) % _POOL_BLOCKS]
        return found

    def _plants(self, name: str, rows: int) -> npt.NDArray[Any] | None:
        """[rows, blocks to overwrite] of -1, 0 (leave) and 1."""
        shape, (layer, _, part) = self.shape, name.removesuffix(".weight").removesuffix("_exps").rpartition(".")
        if part == "ffn_gate":
            self.chance[layer] = self.rng.random((rows, KINDS))
            return np.where(self.chance[layer] < shape.gate_open, 1, -1)
        if part == "ffn_up":
            return np.where(self.chance[layer] < shape.firing, 1, -1)
        if part == "fc1":
            rank_R = np.arange(rows) % shape.rank
            return np.where(rank_R[:, None] == np.arange(KINDS), 1, 0)
        if part == "fc2":
            return np.where(self.chance[layer] < shape.predicted, 1, -1)
        return None if part != "token_embd" else np.where(np.arange(rows)[:, None] % KINDS == np.arange(KINDS), 1, 0)


def _plant(blocks: Blocks, signs: npt.NDArray[Any], kind: str, name: str) -> None:
    """Overwrite first blocks by all levels high or low; in fc2, single levels of the first block."""
    scale = np.frombuffer(struct.pack("<e", 1.4 if "token_embd" in name else 1e-3), np.uint8)
    high, low = (0xFF, 0x11) if kind == "Q4_0" else (7, 249)
    if ".fc2" in name:
        blocks[:, 0, :2] = np.frombuffer(struct.pack("<e", 0.1), np.uint8)
        if kind == "Q8_0":
            blocks[:, 0, 2:] = 0
            blocks[:, 0, 2 : 2 + KINDS] = np.where(signs > 0, 7, 249)
        else:
            blocks[:, 0, 2:] = 0x88
            blocks[:, 0, 2 : 2 + KINDS] = np.where(signs > 0, 0x8F, 0x81)
        return
    for k in range(signs.shape[1]):
        for sign, level in ((1, high), (-1, low)):
            rows = np.flatnonzero(signs[:, k] == sign)
            blocks[rows, k, :2], blocks[rows, k, 2:] = scale, level
