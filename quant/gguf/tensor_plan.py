"""A tensor that a GGUF file is going to hold, and where its rows come from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.files.dtypes import BITS, to_float32
from ...model.files.gguf import ggml
from ...model.files.integrity import largest_bits

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MatrixRows:
    """The rows of one matrix, of which any range can be read at any time, so that several threads can encode it."""

    rows: int
    columns: int
    dtype: str
    """The type of what `read` gives: F32, F16, BF16 (as uint16), or the bytes of another type, which are copied."""
    read: Callable[[int, int], npt.NDArray[Any]]
    """read(start, stop) gives rows [stop - start, columns], contiguous."""
    check: Callable[[], float]
    """The largest magnitude of all values; TsconvertError with file, tensor, row and count if one is not finite."""


Source = Sequence[MatrixRows] | Callable[[], Iterable[Rows]]
"""The matrices of a tensor, several for stacked experts; or a function that makes its rows, in order, as float32."""


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor that a file is going to hold."""

    name: str
    shape: tuple[int, ...]
    """NumPy order, rows first; the file lists the dimensions the other way round."""
    type_name: str
    source: Source
    importance_EC: npt.NDArray[np.float32] | None = None
    """The weight of each column's error, a row for each matrix of ``source``; None counts all alike."""

    @classmethod
    def of(cls, name: str, values: npt.NDArray[Any], type_name: str = "F32") -> "TensorPlan":
        """A small tensor that is in memory: F32, or I32, whose numbers are carried as float32 and so below 2^24."""
        rows = np.atleast_2d(values.astype(np.float32))
        return cls(name=name, shape=values.shape, type_name=type_name, source=lambda: [rows])

    @property
    def size_bytes(self) -> int:
        """The bytes of its data, padding left out."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * ggml.row_bytes(self.type_name, self.shape[-1])


def largest_magnitude(values: npt.NDArray[Any], dtype: str) -> float:
    """The largest magnitude of F32, F16 or BF16 (uint16) values; infinity or NaN if one is that."""
    return magnitude_of_bits(largest_bits(values), dtype)


def magnitude_of_bits(bits: int, dtype: str) -> float:
    """The value of the bits of a magnitude in a float type."""
    return float(to_float32(np.array([bits], BITS[dtype]).view(np.uint8), dtype)[0])
