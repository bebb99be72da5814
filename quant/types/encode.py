"""Rows into block types on the calling thread, by the fastest way that gives ggml's bits.

Rows that are stored in the type already are copied; Q8_0 and Q4_0 have loops of their own; all else goes through ggml.
Shape suffixes: R rows, C columns.
"""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gguf.sources import Rows, Sliced
from . import blocks32, ggml

Bytes = npt.NDArray[np.uint8]
Importance = npt.NDArray[np.float32] | None
_scratch = threading.local()


def encode(
    source: Sliced, start: int, stop: int, type_name: str, importance_C: Importance = None, out_RB: Bytes | None = None
) -> Bytes:
    """Rows ``start`` to ``stop`` of a source, whose values `Sliced.check` found finite, [R, row bytes].

    Args:
        type_name: of the result.
        importance_C: the weight of each column's error; None counts all alike.
        out_RB: where to put them, and what is returned then.
    """
    raw_RC = source.read(start, stop)
    if source.dtype == type_name:
        return _put(raw_RC.view(np.uint8), out_RB)
    if raw_RC.dtype != np.float16 and (done := _blocks32(raw_RC, type_name, importance_C, out_RB)) is not None:
        return done
    rows_RC = _floats(raw_RC)
    done_RB = rows_RC.view(np.uint8) if type_name == "F32" else ggml.quantize(rows_RC, type_name, importance_C)
    return _put(done_RB, out_RB)


def prepare(type_names: Iterable[str], dtype: str) -> None:
    """Load the compiled encoders of some types for a source of ``dtype``, so that no thread has to wait for them."""
    for name in type_names:
        if name in blocks32.TYPES:
            blocks32.quantize(np.zeros((1, blocks32.BLOCK), np.uint16 if dtype == "BF16" else np.float32), name)
        elif name.endswith("_K"):
            ggml.load_faster_encoders(name)
    if dtype == "BF16":
        _floats(np.zeros((1, blocks32.BLOCK), np.uint16))


def _put(done_RB: Bytes, out_RB: Bytes | None) -> Bytes:
    if out_RB is None:
        return done_RB
    np.copyto(out_RB, done_RB)
    return out_RB


def encode_floats(rows_RC: Rows, type_name: str, importance_C: Importance = None) -> Bytes:
    """float32 rows, [R, row bytes]; I32 takes whole numbers, exact in float32 up to 2^24."""
    if type_name == "I32":
        return np.ascontiguousarray(rows_RC, "<i4").view(np.uint8)
    done = _blocks32(rows_RC, type_name, importance_C) if np.isfinite(rows_RC).all() else None
    return ggml.quantize(rows_RC, type_name, importance_C) if done is None else done


def _blocks32(
    raw_RC: npt.NDArray[Any], type_name: str, importance_C: Importance, out_RB: Bytes | None = None
) -> Bytes | None:
    covered = type_name == "Q8_0" or (type_name == "Q4_0" and importance_C is None)
    if not covered or raw_RC.shape[-1] % blocks32.BLOCK:
        return None
    return blocks32.quantize(np.ascontiguousarray(raw_RC), type_name, out_RB)


def _floats(raw_RC: npt.NDArray[Any]) -> Rows:
    """float32 rows; bfloat16's (uint16) in memory of this thread that the next call takes again."""
    if raw_RC.dtype != np.uint16:
        return raw_RC.astype(np.float32, copy=False)
    room: Rows = getattr(_scratch, "room", np.empty(0, np.float32))
    if room.size < raw_RC.size:
        room = _scratch.room = np.empty(raw_RC.size, np.float32)
    return blocks32.widen(raw_RC, room[: raw_RC.size].reshape(raw_RC.shape))
