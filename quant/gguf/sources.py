"""Where a GGUF tensor's rows come from: a checkpoint's tensor as it is, permuted for ggml's rope, or transposed.

Rows are read where they lie in the mapped file, any range of them at any time, so that several threads can encode one
tensor. `check` looks at every value before anything is written.

Shape suffixes: D model width, F neurons, C columns, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.checkpoint import Checkpoint
from ...model.dtypes import to_float32
from ...model.integrity import largest_bits, not_finite
from ...model.tensor_names import Place

Rows = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
_PIECE_VALUES = 1 << 24  # 64 MB of float32
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
Chunks = Callable[[], Iterable[Rows]]
Maker = Callable[[Checkpoint, Place], Chunks]


@dataclass(frozen=True, kw_only=True)
class Sliced:
    """The rows of one matrix, of which any range can be read at any time; called, all of them in a few pieces."""

    rows: int
    columns: int
    dtype: str
    """Of what `read` gives: F32, F16 or BF16 (as uint16)."""
    read: Callable[[int, int], npt.NDArray[Any]]
    """read(start, stop) gives rows [stop - start, columns], contiguous."""
    check: Callable[[], float]
    """The largest magnitude of all values; TsconvertError with file, tensor, row and count if one is not finite."""

    def __call__(self) -> Iterator[Rows]:
        """All rows, checked, in order."""
        self.check()
        step = max(1, _PIECE_VALUES // self.columns)
        for start in range(0, self.rows, step):
            yield self.floats(start, min(start + step, self.rows))

    def floats(self, start: int, stop: int) -> Rows:
        """Rows as float32."""
        raw = self.read(start, stop)
        return to_float32(raw.reshape(-1).view(np.uint8), self.dtype).reshape(raw.shape)


@dataclass(frozen=True)
class Stacked:
    """One tensor after the other: the experts of a layer."""

    parts: Sequence[Chunks]

    def __call__(self) -> Iterator[Rows]:
        """All rows of all parts, in order."""
        for part in self.parts:
            yield from part()


def slices_of(chunks: Chunks) -> list[Sliced] | None:
    """The matrices that a tensor is made of, or None where its rows come in their own order only."""
    parts = list(chunks.parts) if isinstance(chunks, Stacked) else [chunks]
    sliced = [part for part in parts if isinstance(part, Sliced)]
    return sliced if len(sliced) == len(parts) else None


def plain(checkpoint: Checkpoint, place: Place, order: Index | None = None) -> Sliced:
    """The rows as they are, or in another ``order`` (for each row of the file, its number in the checkpoint)."""
    info = checkpoint.info(place)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        raw_RC = _matrix(checkpoint, place)
        return _straight(raw_RC[start:stop] if order is None else raw_RC[order[start:stop]])

    rows = int(np.prod(info.shape[:-1], dtype=np.int64))
    return Sliced(
        rows=rows, columns=info.shape[-1], dtype=info.dtype, read=read, check=lambda: check(checkpoint, place)
    )


def rope_permuted(checkpoint: Checkpoint, place: Place, heads: int) -> Sliced:
    """The rows of q or k in the order in which ggml's rope takes them: pairs side by side, not half a head apart."""
    rows = checkpoint.info(place).shape[0]
    return plain(checkpoint, place, permute_rope(np.arange(rows)[:, None], heads).reshape(-1))


def transposed(checkpoint: Checkpoint, place: Place, order: Index | None = None) -> Sliced:
    """down_DF as down_t [F, D]: the row j belongs to neuron j, or to neuron order[j]."""
    info = checkpoint.info(place)

    def read(start: int, stop: int) -> npt.NDArray[Any]:
        raw_DF = _matrix(checkpoint, place)
        return _straight((raw_DF[:, start:stop] if order is None else raw_DF[:, order[start:stop]]).T)

    return Sliced(
        rows=info.shape[1], columns=info.shape[0], dtype=info.dtype, read=read, check=lambda: check(checkpoint, place)
    )


def stacked(parts: Sequence[Chunks]) -> Stacked:
    """One tensor after the other: the experts of a layer."""
    return Stacked(parts)


def permute_rope(rows_RC: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Rows of q or k from Hugging Face's order (pair i is rows i and i + half) to ggml's (rows 2i and 2i + 1)."""
    rows, columns = rows_RC.shape
    return rows_RC.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


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
    largest = _value(checkpoint.scans[place].largest_bits, info.dtype)
    if not np.isfinite(largest):
        raise not_finite(info.file, info.name, checkpoint.array(place))
    return largest


def magnitude(values: npt.NDArray[Any], dtype: str) -> float:
    """The largest magnitude of F32, F16 or BF16 (uint16) values; infinity or NaN if one is that."""
    return _value(largest_bits(values), dtype)


def _value(bits: int, dtype: str) -> float:
    return float(to_float32(np.array([bits], _BITS[dtype]).view(np.uint8), dtype)[0])


def _matrix(checkpoint: Checkpoint, place: Place) -> npt.NDArray[Any]:
    """The tensor as it lies in the file, [rows, columns] of `Sliced.dtype`, maybe not aligned."""
    info = checkpoint.info(place)
    return checkpoint.raw(place).view(_NUMPY[info.dtype]).reshape(-1, info.shape[-1])


def _straight(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.require(values, requirements=["C", "A"])
