"""Logits of the runner against transformers' layers, on a few prompts.

transformers computes with the weights as the file has them, moved back into Hugging Face's layout: that they are the
source's is shown tensor by tensor, and what is left to show is that the file's keys and layouts mean the same
arithmetic. It goes through the layer sweep, so that one layer is in memory at a time, whatever the model's size.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.files.gguf import ggml
from ...model.files.gguf.file import GgufFile
from ...model.files.safetensors_files import TensorInfo
from ...model.tensor_names import FFN, Place, shape_of
from ...runner.model import load
from .expected_tensors import Expected, Floats, Orders, expected_tensors, factors_of, rope_order
from .type_bounds import FLOAT_TYPES

PROMPTS = (
    "The history of the sea is told by those who came back, and what they tell is seldom what they saw on the way.",
    "def area(width, height):\n    if width < 0 or height < 0:\n        raise ValueError('negative')\n    return width",
    "In 1848 there were 23 railways; by 1900 — half a century later — “naïve” plans had become 30,000 km of track.",
)
_TOKENS = 24
# Relative difference of the logits. Right files lie at 1e-6 to 1e-5 (float types) and 0.01 to 0.08 (30 layers whose
# activations are rounded to 8 bits), a wrong rope, activation or matrix at 0.5 and more.
_BOUND, _QUANTIZED_BOUND = 0.005, 0.25


@dataclass(frozen=True, kw_only=True)
class LogitsResult:
    """How the runner's logits compare with transformers'."""

    prompts: int = 0
    tokens: int = 0
    difference: float = 0.0
    """Root mean square of the difference over that of the logits around their mean; the worst prompt's."""
    agreement: float = 0.0
    """Share of the positions with the same first choice."""
    problem: str = ""
    skipped: str = ""
    """Why nothing was compared."""


def compare_logits(file: GgufFile, checkpoint: Checkpoint, orders: Orders, dialect: str, hf: Any) -> LogitsResult:
    """Run the prompts through both; see the module."""
    spec = checkpoint.spec
    needs = 4 * max(spec.vocab * spec.width, (3 * spec.neurons * spec.ffns + 4 * spec.width) * spec.width) * 2
    free = _free_bytes()
    if needs > free:
        skipped = f"skipped, one layer needs {needs / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        return LogitsResult(skipped=skipped)
    encoded = [hf.encode(prompt) for prompt in PROMPTS]
    length = min(_TOKENS, spec.context, *map(len, encoded))
    rows_NS = np.array([ids[:length] for ids in encoded], np.int64)
    decoded = DecodedCheckpoint(checkpoint, file, orders, dialect)
    wanted = _transformers_logits(decoded, rows_NS)
    mode = "exact" if spec.sparse and dialect != "llama.cpp" else "dense"
    try:
        with load(file.path, mode=mode, context=length, cache_type="F32") as model:
            found = [model.logits(row_S.tolist()) for row_S in rows_NS]
    except TsconvertError as error:
        return LogitsResult(problem=str(error))
    types = {tensor.type_name for name, tensor in file.tensors.items() if name.startswith("blk.")}
    bound = _BOUND if types <= {*FLOAT_TYPES, "I32"} else _QUANTIZED_BOUND
    worst, same = 0.0, 0
    for found_SV, wanted_SV in zip(found, wanted, strict=True):
        centred_SV = wanted_SV - wanted_SV.mean(axis=1, keepdims=True)
        difference = float(np.linalg.norm(found_SV - wanted_SV) / max(float(np.linalg.norm(centred_SV)), 1e-30))
        worst = max(worst, difference) if np.isfinite(difference) else float("inf")
        same += int((found_SV.argmax(axis=1) == wanted_SV.argmax(axis=1)).sum())
    problem = f"the runner's logits differ from transformers' by {worst:.3g}, over {bound:g}" if worst > bound else ""
    return LogitsResult(
        prompts=len(rows_NS), tokens=rows_NS.size, difference=worst, agreement=same / rows_NS.size, problem=problem
    )


def _transformers_logits(checkpoint: Checkpoint, rows_NS: npt.NDArray[np.int64]) -> list[Floats]:
    import torch

    from ...model.sweep import sweep

    stream = sweep(checkpoint, torch.from_numpy(rows_NS), [])
    return [logits_SV.numpy() for logits_SV in stream.logits(slice(None))]


def _free_bytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 1 << 62


class DecodedCheckpoint(Checkpoint):
    """A checkpoint like ``source`` whose weights are a GGUF file's, in Hugging Face's layout and order, as float32."""

    def __init__(self, source: Checkpoint, file: GgufFile, orders: Orders, dialect: str) -> None:
        self.folder, self.config, self.spec = source.folder, source.config, source.spec
        self._file, self._orders = file, orders
        self._at: dict[Place, tuple[Expected, int]] = {}
        self._infos = {}
        for expected in expected_tensors(self.spec, dialect, factors_of(file)):
            for expert, place in enumerate(expected.places):
                if place not in self._at:
                    self._at[place] = (expected, expert)
                    shape = shape_of(self.spec, place)
                    size = 4 * int(np.prod(shape))
                    self._infos[place] = TensorInfo(expected.name, file.path, "F32", shape, 0, size)

    def require_finite(self) -> None:
        """Nothing: that each tensor is its source's has been looked at."""

    def raw(self, place: Place) -> npt.NDArray[np.uint8]:
        """The bytes of the decoded tensor."""
        expected, expert = self._at[place]
        tensor = self._file.tensors[expected.name]
        rows = int(np.prod(expected.shape[:-1])) // len(expected.places)
        raw_RB = tensor.raw.reshape(-1, ggml.row_bytes(tensor.type_name, expected.shape[-1]))
        piece = raw_RB[expert * rows : (expert + 1) * rows].reshape(-1)
        stored_RC = ggml.dequantize(piece, tensor.type_name, (rows, expected.shape[-1])) / np.float32(expected.factor)
        return np.ascontiguousarray(self._restored(stored_RC, expected, expert)).reshape(-1).view(np.uint8)

    def prefetch(self, layer: int) -> None:
        """Nothing: the tensor check has just read the file."""

    def _restored(self, stored_RC: Floats, expected: Expected, expert: int) -> Floats:
        spec, order_F = self.spec, self._orders.get((expected.layer or 0, expert))
        if expected.role in ("attn_q", "attn_k"):
            heads = spec.heads if expected.role == "attn_q" else spec.kv_heads
            return stored_RC[np.argsort(rope_order(heads, spec.head_dim))]
        if expected.role not in FFN:
            return stored_RC
        if expected.role == "ffn_down" and not expected.transposed:
            return stored_RC if order_F is None else stored_RC[:, np.argsort(order_F)]
        rows_FD = stored_RC if order_F is None else stored_RC[np.argsort(order_F)]
        return rows_FD.T if expected.transposed else rows_FD
