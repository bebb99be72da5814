"""Where a GGUF tensor's rows come from: a checkpoint's tensor as it is, permuted for ggml's rope, or transposed.

Every value is checked on its way: NaN and infinity stop the export before the file gets its name.
Shape suffixes: D model width, F neurons, C columns, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ..convert.checkpoint import Checkpoint, to_float32
from ..convert.errors import TsconvertError
from ..convert.names import Place
from .gguf_writer import Rows

_PIECE_VALUES = 1 << 24  # 64 MB of float32
Chunks = Callable[[], Iterable[Rows]]
Maker = Callable[[Checkpoint, Place], Chunks]


def plain(checkpoint: Checkpoint, place: Place) -> Chunks:
    """The rows as they are, a few thousand at a time."""

    def chunks() -> Iterator[Rows]:
        info, raw = checkpoint.info(place), checkpoint.raw(place)
        columns = info.shape[-1]
        row_bytes = info.size_bytes // max(1, int(np.prod(info.shape[:-1], dtype=np.int64)))
        step = max(1, _PIECE_VALUES // columns) * row_bytes
        for start in range(0, info.size_bytes, step):
            piece_RC = to_float32(raw[start : start + step], info.dtype).reshape(-1, columns)
            if not np.isfinite(piece_RC).all():
                _refuse(checkpoint, place)
            yield piece_RC

    return chunks


def rope_permuted(checkpoint: Checkpoint, place: Place, heads: int) -> Chunks:
    """The rows of q or k in the order in which ggml's rope takes them: pairs side by side, not half a head apart."""
    return lambda: [permute_rope(checked(checkpoint, place), heads)]


def transposed(checkpoint: Checkpoint, place: Place) -> Chunks:
    """down_DF as down_t [F, D]: the row j belongs to neuron j."""
    return lambda: [np.ascontiguousarray(checked(checkpoint, place).T)]


def stacked(parts: Sequence[Chunks]) -> Chunks:
    """One tensor after the other: the experts of a layer."""

    def chunks() -> Iterator[Rows]:
        for part in parts:
            yield from part()

    return chunks


def permute_rope(rows_RC: Rows, heads: int) -> Rows:
    """Rows of q or k from Hugging Face's order (pair i is rows i and i + half) to ggml's (rows 2i and 2i + 1)."""
    rows, columns = rows_RC.shape
    return rows_RC.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermute_rope(rows_RC: Rows, heads: int) -> Rows:
    """The inverse of `permute_rope`."""
    rows, columns = rows_RC.shape
    return rows_RC.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def checked(checkpoint: Checkpoint, place: Place) -> Rows:
    """The whole tensor as float32.

    Raises:
        TsconvertError: a value is NaN or infinite; names file, tensor, how many, and the first row.
    """
    values = checkpoint.array(place)
    if not np.isfinite(values).all():
        _refuse(checkpoint, place)
    return values


def _refuse(checkpoint: Checkpoint, place: Place) -> None:
    info = checkpoint.info(place)
    bad = ~np.isfinite(checkpoint.array(place)).reshape(-1, info.shape[-1])
    row = int(np.argmax(bad.any(axis=1)))
    raise TsconvertError(
        f"{info.file}: tensor {info.name} holds {int(bad.sum())} values that are NaN or infinite, the first in row"
        f" {row}; the weights are damaged or training diverged, go back to a sound checkpoint"
    )
