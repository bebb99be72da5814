"""Weights into block types by the fastest way that gives ggml's bits.

Rows that are stored in the type already are copied; Q8_0, Q4_0 and the K-quants have vectorised encoders, which are
loaded when they are needed; all else goes through ggml. Shape suffixes: R rows, C columns, B bytes.
"""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.files.gguf import ggml

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
_CHUNK_WEIGHTS = 1 << 20  # encoded in one call
_PATIENCE_WEIGHTS = 4 << 20  # in K-quants by ggml, before faster encoders are loaded: half a second, or 15 s to compile
_k_weights = 0  # in K-quants so far
_counting = threading.Lock()
_scratch = threading.local()


def encode(
    raw_RC: npt.NDArray[Any],
    dtype: str,
    type_name: str,
    importance_C: Floats | None = None,
    out_RB: Bytes | None = None,
) -> Bytes:
    """Encode rows of finite weights on the calling thread.

    Args:
        raw_RC: float32, float16, or uint16 that are bfloat16; contiguous. Bytes of any other type are copied.
        dtype: F32, F16, BF16, or the type of the bytes.
        type_name: the type of the result.
        importance_C: the weight of each column's error; None counts all alike.
        out_RB: contiguous memory for the result, which is returned then.

    Returns:
        [rows, row bytes].
    """
    if dtype == type_name:
        return _put(raw_RC.view(np.uint8), out_RB)
    covered = type_name == "Q8_0" or (type_name == "Q4_0" and importance_C is None)
    if covered and dtype != "F16" and raw_RC.shape[-1] % ggml.TYPES[type_name].weights == 0:
        from . import q8_0_q4_0

        done_RB = q8_0_q4_0.quantize(np.ascontiguousarray(raw_RC), type_name, out_RB)
        if done_RB is not None:
            return done_RB
    rows_RC = _floats(raw_RC)
    return _put(rows_RC.view(np.uint8) if type_name == "F32" else quantize(rows_RC, type_name, importance_C), out_RB)


def quantize(values_RC: Floats, type_name: str, importance_C: Floats | None = None) -> Bytes:
    """Encode rows of weights on the calling thread, checked first.

    Args:
        values_RC: [rows, columns] float32.
        type_name: one of `ggml.weight_types()`.
        importance_C: [columns] float32, the weight of each column's error; None counts all alike.

    Returns:
        [rows, row bytes] uint8.

    Raises:
        TsconvertError: the columns do not fit the type's blocks, a value is not finite, or the type needs importances.
    """
    rows, columns = values_RC.shape
    size = ggml.row_bytes(type_name, columns)
    if type_name not in ggml.weight_types():
        raise TsconvertError(f"weights cannot be stored as {type_name}; choose one of {', '.join(ggml.weight_types())}")
    if importance_C is None and ggml.needs_importance(type_name):
        raise TsconvertError(f"{type_name} needs an importance matrix; give --imatrix or choose another type")
    if importance_C is not None and importance_C.shape != (columns,):
        raise TsconvertError(
            f"importance has shape {list(importance_C.shape)} where rows have {columns} columns; give one a column"
        )
    if not (finite_R := np.isfinite(values_RC).all(axis=1)).all():
        raise TsconvertError(
            f"row {int(np.argmin(finite_R))} holds NaN or infinity; the weights are damaged or training diverged, go"
            " back to a sound checkpoint"
        )
    values_RC = np.ascontiguousarray(values_RC, np.float32)
    importance_C = None if importance_C is None else np.ascontiguousarray(importance_C, np.float32)
    out_RB = np.empty((rows, size), np.uint8)
    step = max(1, _CHUNK_WEIGHTS // max(1, columns))
    for start in range(0, rows, step):
        part_RC = values_RC[start : start + step]
        done_RB = _vectorised(part_RC, type_name, importance_C) if type_name.endswith("_K") else None
        out_RB[start : start + step] = (
            ggml.quantize_chunk(part_RC, type_name, importance_C) if done_RB is None else done_RB
        )
    return out_RB


def prepare(type_names: Iterable[str], dtype: str) -> None:
    """Load or compile the encoders of some types for a source of ``dtype`` now, so that no thread has to wait for them.

    The K-quants' are used from the first row on then.
    """
    global _k_weights
    for name in type_names:
        if name in ("Q8_0", "Q4_0"):
            encode(np.zeros((1, 32), np.uint16 if dtype == "BF16" else np.float32), dtype, name)
        elif name.endswith("_K"):
            with _counting:
                _k_weights += _PATIENCE_WEIGHTS
            quantize(np.zeros((1, ggml.block_type(name).weights), np.float32), name)
    if dtype == "BF16":
        _floats(np.zeros((1, 32), np.uint16))


def _vectorised(part_RC: Floats, type_name: str, importance_C: Floats | None) -> Bytes | None:
    """The same bytes from the vectorised K-quant encoders; None while so little is encoded that ggml is done sooner."""
    global _k_weights
    with _counting:
        _k_weights += part_RC.size
        early = _k_weights <= _PATIENCE_WEIGHTS
    if early:
        return None
    from .kquants import encoders

    return encoders.quantize_rows(part_RC, type_name, importance_C)


def _put(done_RB: Bytes, out_RB: Bytes | None) -> Bytes:
    if out_RB is None:
        return done_RB
    np.copyto(out_RB, done_RB)
    return out_RB


def _floats(raw_RC: npt.NDArray[Any]) -> Floats:
    """float32 rows; bfloat16's (uint16) in memory of this thread that the next call takes again."""
    if raw_RC.dtype != np.uint16:
        return raw_RC.astype(np.float32, copy=False)
    from . import q8_0_q4_0

    room: Floats = getattr(_scratch, "room", np.empty(0, np.float32))
    if room.size < raw_RC.size:
        room = _scratch.room = np.empty(raw_RC.size, np.float32)
    return q8_0_q4_0.widen(raw_RC, room[: raw_RC.size].reshape(raw_RC.shape))
