"""The rows of a checkpoint's tensor as a GGUF file has them: as they are, permuted for ggml's rope, or transposed.

Rows are read where they lie in the mapped file; `check` looks at every value before anything is written.
Shape suffixes: D model width, F neurons, C columns, R rows.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.checkpoint import Checkpoint
from ...model.files.dtypes import ARRAYS, to_float32
from ...model.files.gguf.tensor import rope_order
from ...model.files.integrity import not_finite
from ...model.tensor_names import Place
from ..gguf.tensor_plan import MatrixRows, Rows, magnitude_of_bits

Index = npt.NDArray[np.int64]


def plain(checkpoint: Checkpoint, place: Place, order: Index | None = None) -> MatrixRows:
    """The rows as they are, or in another ``order`` (for each row of the file, its number in the checkpoint)."""
    info = checkpoint.info(place)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        rows_RB = checkpoint.rows(place, slice(start, stop) if order is None else order[start:stop])
        return _contiguous(np.ascontiguousarray(rows_RB).view(ARRAYS[info.dtype]))

    return MatrixRows(
        rows=info.rows, columns=info.shape[-1], dtype=info.dtype, read=read, check=lambda: check(checkpoint, place)
    )


def rope_index(rows: int, heads: int, rotated: int) -> Index:
    """For each row of q or k for ggml's rope, which wants pairs side by side, its number in a Hugging Face checkpoint.

    Args:
        rotated: the dimensions of a head that turn, its first.
    """
    return np.argsort(rope_order(heads, rows // heads, rotated))


def vector(checkpoint: Checkpoint, place: Place, order: Index | None, offset: float, factor: float) -> MatrixRows:
    """A vector as one row: values in another ``order``, plus ``offset``, times ``factor``."""
    if order is None and not offset and factor == 1:
        return plain(checkpoint, place)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        values_C = checkpoint.array(place)
        values_C = values_C if order is None else values_C[order]
        return _contiguous(((values_C + np.float32(offset)) * np.float32(factor))[None][start:stop])

    rows = plain(checkpoint, place)
    return replace(rows, dtype="F32", read=read, check=lambda: (rows.check() + abs(offset)) * abs(factor))


def transposed(checkpoint: Checkpoint, place: Place, order: Index | None = None) -> MatrixRows:
    """down_DF as down_t [F, D]: the row j belongs to neuron j, or to neuron order[j]."""
    info = checkpoint.info(place)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        raw_DF = _matrix(checkpoint, place)
        return _contiguous((raw_DF[:, start:stop] if order is None else raw_DF[:, order[start:stop]]).T)

    return MatrixRows(
        rows=info.shape[1], columns=info.shape[0], dtype=info.dtype, read=read, check=lambda: check(checkpoint, place)
    )


def scaled(rows: MatrixRows, factor: float) -> MatrixRows:
    """The rows times ``factor``, as float32."""

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        values_RC = to_float32(rows.read(start, stop).reshape(-1).view(np.uint8), rows.dtype)
        return (values_RC * np.float32(factor)).reshape(stop - start, rows.columns)

    return replace(rows, dtype="F32", read=read, check=lambda: rows.check() * abs(factor))


def checked(checkpoint: Checkpoint, place: Place) -> Rows:
    """The whole tensor as float32.

    Raises:
        TsconvertError: a value is NaN or infinite; names file, tensor, how many, and the first row.
    """
    check(checkpoint, place)
    return checkpoint.array(place)


def check(checkpoint: Checkpoint, place: Place) -> float:
    """The largest magnitude in the tensor at ``place``.

    Raises:
        TsconvertError: a value is NaN or infinite; names file, tensor, how many, and the first row.
    """
    info = checkpoint.info(place)
    largest = magnitude_of_bits(checkpoint.scans[place].largest_bits, info.dtype)
    if not np.isfinite(largest):
        raise not_finite(info.file, info.name, checkpoint.array(place))
    return largest


def _matrix(checkpoint: Checkpoint, place: Place) -> npt.NDArray[Any]:
    """The tensor as it lies in the file, [rows, columns], maybe not aligned."""
    info = checkpoint.info(place)
    return checkpoint.raw(place).view(ARRAYS[info.dtype]).reshape(-1, info.shape[-1])


def _contiguous(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.require(values, requirements=["C", "A"])
