"""GGUF files of any shape, written as random blocks in seconds: ours with predictors, llama.cpp's, PowerInfer's.

What fires is planted. Each token's embedding is large in one of eight runs of 32 channels and small elsewhere; every
row of gate, up and predictor has its answer to each of the eight in the first eight blocks. So of the neurons 20 % have
an open gate, 10 % fire, and 12 % are predicted (all that fire, and more), others for each of the eight kinds of token.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsconvert.model.files.gguf import ggml
from tsconvert.quant.gguf.tensor_plan import TensorPlan as Plan
from tsconvert.quant.gguf.values import Value, array, f32, text, u32
from tsconvert.quant.gguf.writer import ALIGNMENT, header

KINDS, RUN = 8, 32
OPEN, FIRING, PREDICTED = 0.20, 0.10, 0.12
_POOL_BLOCKS = (1 << 20) - 3  # odd, so that no two tensors begin alike
_SCALE_OFFSETS = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}
_ARCHITECTURES = {"sparse": "turbosparse", "llama.cpp": "llama", "powerinfer": "bamboo"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a Mistral-like model; the defaults are the 7B's."""

    layers: int = 32
    width: int = 4096
    neurons: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 32000
    rank: int = 512
    type_name: str = "Q4_0"
    predictor_type: str = "Q8_0"


def write(path: Path, target: str, shape: Shape, seed: int = 0) -> Path:
    """Write a file for ``target`` (`sparse`, `llama.cpp` or `powerinfer`)."""
    tensors = list(_tensors(target, shape))
    magic = b"PWRI" if target == "powerinfer" else b"GGUF"
    plans = [Plan(name=f"{name}.weight", shape=dims, type_name=kind, source=list) for name, dims, kind in tensors]
    with path.open("wb") as stream:
        stream.write(header(_metadata(target, shape), plans, magic))
        source = _Source(shape, seed)
        for (name, dims, kind), plan in zip(tensors, plans, strict=True):
            source.write(stream, name, dims, kind)
            stream.write(b"\0" * (-plan.size_bytes % ALIGNMENT))
    return path


def _tensors(target: str, s: Shape) -> Iterator[tuple[str, tuple[int, ...], str]]:
    kind, head = s.type_name, s.width // s.heads
    mixed = kind == "Q4_K" and target == "llama.cpp"  # Q4_K_M: half of attn_v and ffn_down, and the head, in Q6_K
    yield "token_embd", (s.vocab, s.width), kind
    for layer in range(s.layers):
        more = "Q6_K" if mixed and (layer < s.layers // 8 or layer >= 7 * s.layers // 8 or layer % 3 == 2) else kind
        yield f"blk.{layer}.attn_norm", (s.width,), "F32"
        yield f"blk.{layer}.attn_q", (s.width, s.width), kind
        yield f"blk.{layer}.attn_k", (s.kv_heads * head, s.width), kind
        yield f"blk.{layer}.attn_v", (s.kv_heads * head, s.width), more
        yield f"blk.{layer}.attn_output", (s.width, s.width), kind
        yield f"blk.{layer}.ffn_norm", (s.width,), "F32"
        yield f"blk.{layer}.ffn_gate", (s.neurons, s.width), kind
        yield f"blk.{layer}.ffn_up", (s.neurons, s.width), kind
        if target == "llama.cpp":
            yield f"blk.{layer}.ffn_down", (s.width, s.neurons), more
            continue
        yield f"blk.{layer}.ffn_down_t", (s.neurons, s.width), kind
        yield f"blk.{layer}.fc1", (s.rank, s.width), s.predictor_type
        yield f"blk.{layer}.fc2", (s.neurons, s.rank), s.predictor_type
    yield "output_norm", (s.width,), "F32"
    yield "output", (s.vocab, s.width), "Q6_K" if mixed else kind


def _metadata(target: str, s: Shape) -> dict[str, Value]:
    arch = _ARCHITECTURES[target]
    keys = {
        "context_length": u32(4096), "embedding_length": u32(s.width), "block_count": u32(s.layers),
        "feed_forward_length": u32(s.neurons), "attention.head_count": u32(s.heads), "vocab_size": u32(s.vocab),
        "attention.head_count_kv": u32(s.kv_heads), "attention.layer_norm_rms_epsilon": f32(1e-5),
        "rope.dimension_count": u32(s.width // s.heads), "rope.freq_base": f32(10000.0),
    }  # fmt: skip
    if target == "sparse":
        keys |= {"format_version": u32(1), "activation": text("drelu"), "source_fingerprint": text("")}
        keys |= {
            "predictor.threshold": array("f32", [0.0] * s.layers), "predictor.rank": array("u32", [s.rank] * s.layers),
        }  # fmt: skip
    found = {"general.architecture": text(arch), "general.name": text("random")}
    found |= {f"{arch}.{name}": value for name, value in keys.items()}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"t{i}" for i in range(s.vocab - len(tokens))]
    types = [2, 3, 3] + [6] * 256 + [1] * (s.vocab - 259)
    found |= {
        "tokenizer.ggml.model": text("llama"), "tokenizer.ggml.tokens": array("str", tokens),
        "tokenizer.ggml.scores": array("f32", [float(-i) for i in range(s.vocab)]),
        "tokenizer.ggml.token_type": array("i32", types), "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2), "tokenizer.ggml.unknown_token_id": u32(0),
    }  # fmt: skip
    return found


class _Source:
    """Random blocks with sane scales, drawn once a type, and what is planted on them."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.rng, self.pools = shape, np.random.default_rng(seed), {}
        self.firing: dict[str, np.ndarray] = {}

    def write(self, stream, name: str, dims: tuple[int, ...], kind: str) -> None:
        if kind == "F32":
            stream.write(np.ones(dims, np.float32).tobytes())
            return
        block, planted = ggml.TYPES[kind], self._plants(name, dims[0])
        per_row, rows_at_once = dims[1] // block.weights, max(1, _POOL_BLOCKS // 4 // (dims[1] // block.weights))
        factor = 1e-4 if "ffn_down" in name or "attn_output" in name else 1e-3
        for first in range(0, dims[0], rows_at_once):
            count = min(rows_at_once, dims[0] - first)
            blocks = self._blocks(kind, count * per_row, factor).reshape(count, per_row, block.size_bytes)
            if planted is not None and kind in ("Q4_0", "Q8_0"):
                blocks = blocks.copy()
                _plant(blocks, planted[first : first + count], kind, name)
            stream.write(np.ascontiguousarray(blocks).data)

    def _blocks(self, kind: str, count: int, factor: float) -> np.ndarray:
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
        return pool[np.arange(start, start + count) % _POOL_BLOCKS]

    def _plants(self, name: str, rows: int) -> np.ndarray | None:
        """[rows, blocks to overwrite] of -1, 0 (leave) and 1."""
        part, layer = name.rsplit(".", 1)[-1], name.rsplit(".", 1)[0]
        if part == "token_embd":
            return np.where(np.arange(rows)[:, None] % KINDS == np.arange(KINDS), 1, 0)
        if part == "ffn_gate":
            self.firing[layer] = self.rng.random((rows, KINDS))
            return np.where(self.firing[layer] < OPEN, 1, -1)
        if part == "ffn_up":
            return np.where(self.firing[layer] < FIRING, 1, -1)
        if part == "fc1":
            return np.where(np.arange(rows)[:, None] == np.arange(KINDS), 1, 0)
        if part == "fc2":
            return np.where(self.firing[layer] < PREDICTED, 1, -1)
        return None


def _plant(blocks: np.ndarray, signs: np.ndarray, kind: str, name: str) -> None:
    """Overwrite first blocks by all levels high or low; in fc2, single levels of the first block."""
    scale = np.frombuffer(struct.pack("<e", 1.4 if "token_embd" in name else 1e-3), np.uint8)
    high, low = (0xFF, 0x11) if kind == "Q4_0" else (7, 249)
    if name.endswith("fc2"):
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
