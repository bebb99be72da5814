"""Tensors into a file: checked first, then encoded and written by several threads at once, each a piece at a time.

Where a piece goes is known before it is made, so threads do not wait for each other: while one reads, another encodes
or writes (ggml, Numba's loops and the system's calls all run without Python's lock). Memory is a few pieces a thread,
whatever the model's size.

Shape suffixes: R rows, C columns, E experts.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ..types import ggml
from ..types.encode import encode, encode_floats
from .placed_file import PlacedFile
from .sources import Chunks, Sliced, slices_of

Step = Callable[[str], None]
PIECE_WEIGHTS = 1 << 20  # encoded at a time
_WRITE_BYTES = 1 << 22  # written at a time, at least, where there are as many: a write waits for the disk
_WAITING = 2  # more threads than cores, for some wait for the disk
_F16_LIMIT = 65520.0  # rounds to infinity from here on
_UNLIMITED = ("F32", "BF16", "F64", "I8", "I16", "I32", "I64")


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor that a file is going to hold."""

    name: str
    shape: tuple[int, ...]
    """NumPy order, rows first; the file lists the dimensions the other way round."""
    type_name: str
    chunks: Chunks
    """Makes its rows, in order, as float32 [rows, columns]; a `Sliced` or `Stacked` source makes any part of them."""
    importance_EC: npt.NDArray[np.float32] | None = None
    """The weight of each column's error, a row for each of the matrices that `chunks` stacks; None: all alike."""

    @property
    def size_bytes(self) -> int:
        """Of its data, padding left out."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * ggml.row_bytes(self.type_name, self.shape[-1])


def check_tensors(tensors: Sequence[TensorPlan], threads: int | None = None) -> None:
    """Look at every value, on all cores, before anything is written.

    Raises:
        TsconvertError: one is NaN or infinite, or too large for F16, which is also the type of blocks' scales; names
            the tensor, the file, the row and the count.
    """
    with ThreadPoolExecutor(threads or cores()) as pool:
        results = [pool.submit(_check, tensor) for tensor in tensors]
        try:
            for result in results:
                result.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def write_tensors(
    file: PlacedFile, tensors: Sequence[tuple[TensorPlan, int]], step: Step, threads: int | None = None
) -> None:
    """Encode each tensor and put it at its offset in ``file``; on an error all threads stop, and it is raised."""
    work = _Work(tensors, step)
    workers = (threads or cores()) + _WAITING
    with ThreadPoolExecutor(workers) as pool:
        results = [pool.submit(work.run, file) for _ in range(workers)]
        try:
            for result in results:
                result.result()
        except BaseException:
            work.stop()
            raise


def cores() -> int:
    """How many the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Piece:
    """Rows of a source, their place in the file, and the tensor they belong to; no source: the whole tensor."""

    tensor: int
    offset: int
    source: Sliced | None = None
    start: int = 0
    stop: int = 0
    importance_C: npt.NDArray[np.float32] | None = None


class _Work:
    """The pieces of all tensors in the order of the file, dealt out to threads."""

    def __init__(self, tensors: Sequence[tuple[TensorPlan, int]], step: Step) -> None:
        self._tensors, self._step = tensors, step
        self._lock, self._stopped = threading.Lock(), False
        self._pieces = (piece for i in range(len(tensors)) for piece in self._split(i))
        self._left = [sum(1 for _ in self._split(i)) for i in range(len(tensors))]

    def stop(self) -> None:
        """Deal out no more."""
        self._stopped = True

    def run(self, file: PlacedFile) -> None:
        """Take pieces until there are none."""
        try:
            while (piece := self._next()) is not None:
                self._write(file, piece)
                with self._lock:
                    self._left[piece.tensor] -= 1
                    if not self._left[piece.tensor]:
                        self._step(self._tensors[piece.tensor][0].name)
        except BaseException:
            self.stop()
            raise

    def _next(self) -> _Piece | None:
        with self._lock:
            return None if self._stopped else next(self._pieces, None)

    def _split(self, i: int) -> Iterator[_Piece]:
        tensor, offset = self._tensors[i]
        sources = slices_of(tensor.chunks)
        if sources is None:
            yield _Piece(i, offset)
            return
        row_bytes = ggml.row_bytes(tensor.type_name, tensor.shape[-1])
        rows = max(1, PIECE_WEIGHTS // tensor.shape[-1])
        step = rows * -(-_WRITE_BYTES // (rows * row_bytes))
        for part, source in enumerate(sources):
            importance_C = None if tensor.importance_EC is None else tensor.importance_EC[part]
            for start in range(0, source.rows, step):
                stop = min(start + step, source.rows)
                yield _Piece(i, offset + start * row_bytes, source, start, stop, importance_C)
            offset += source.rows * row_bytes

    def _write(self, file: PlacedFile, piece: _Piece) -> None:
        tensor = self._tensors[piece.tensor][0]
        if piece.source is not None:
            columns = tensor.shape[-1]
            rows, row_bytes = piece.stop - piece.start, ggml.row_bytes(tensor.type_name, columns)
            room_RB = file.room(piece.offset, rows * row_bytes).reshape(rows, row_bytes)
            step = max(1, PIECE_WEIGHTS // columns)
            for at in range(0, rows, step):
                span = piece.start + at, piece.start + min(at + step, rows)
                encode(piece.source, *span, tensor.type_name, piece.importance_C, room_RB[at : at + step])
            file.write(piece.offset, room_RB)
            return
        offset = piece.offset
        importance_C = None if tensor.importance_EC is None else tensor.importance_EC[0]
        for rows_RC in tensor.chunks():
            done = encode_floats(rows_RC, tensor.type_name, importance_C)
            file.write(offset, done)
            offset += done.nbytes
        if offset - piece.offset != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: {offset - piece.offset} bytes where its shape makes {tensor.size_bytes}")


def _check(tensor: TensorPlan) -> None:
    sources = slices_of(tensor.chunks)
    if sources is None:
        peak = max((float(np.abs(rows).max()) for rows in tensor.chunks() if rows.size), default=0.0)
        if not np.isfinite(peak):
            raise TsconvertError(
                f"{tensor.name}: values are NaN or infinite; the weights are damaged or training diverged, go back to a"
                " sound checkpoint"
            )
    else:
        peak = max((source.check() for source in sources), default=0.0)
    if tensor.type_name not in _UNLIMITED and peak >= _F16_LIMIT:
        if tensor.type_name != "F16":  # ggml's own encoders end the process, or store a scale of infinity
            raise TsconvertError(
                f"{tensor.name}: values reach {peak:g}, more than the F16 scales of {tensor.type_name} may hold; choose"
                f" another type, for this tensor alone with --tensor-type {tensor.name}=F32"
            )
        raise TsconvertError(
            f"{tensor.name}: values reach {peak:g} and F16 ends at 65504; choose another type,"
            f" for this tensor alone with --tensor-type {tensor.name}=F32"
        )
