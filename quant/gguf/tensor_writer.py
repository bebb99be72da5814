"""Tensors into a file: checked first, then encoded and written by several threads at once, each a piece at a time.

Where a piece goes is known before it is made, so threads do not wait for each other: while one reads, another encodes
or writes (ggml, Numba's loops and the system's calls all run without Python's lock). Memory is a few pieces a thread,
whatever the model's size.

Shape suffixes: R rows, C columns, E experts, B bytes.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ..types import ggml
from ..types.encoding import encode, quantize
from .parallel_file import ParallelFile
from .tensor_plan import MatrixRows, TensorPlan

PIECE_WEIGHTS = 1 << 20  # encoded at a time
_WRITE_BYTES = 1 << 22  # written at a time, at least, where there are as many: a write waits for the disk
_WAITING = 2  # more threads than cores, for some wait for the disk
_F16_LIMIT = 65520.0  # rounds to infinity from here on
_UNLIMITED = ("F32", "BF16", "F64", "I8", "I16", "I32", "I64")


def check_tensors(tensors: Sequence[TensorPlan], threads: int | None = None) -> None:
    """Look at every value, on all cores, before anything is written.

    Raises:
        TsconvertError: one is NaN or infinite, or too large for F16, which is also the type of blocks' scales; names
            the tensor, the file, the row and the count.
    """
    with ThreadPoolExecutor(threads or _cores()) as pool:
        _wait(
            [pool.submit(_check, tensor) for tensor in tensors],
            stop=lambda: pool.shutdown(wait=True, cancel_futures=True),
        )


def write_tensors(
    file: ParallelFile,
    tensors: Sequence[tuple[TensorPlan, int]],
    step: Callable[[str], None],
    threads: int | None = None,
) -> None:
    """Encode each tensor and put it at its offset in ``file``; on an error all threads stop, and it is raised."""
    work = _Work(tensors, step)
    workers = (threads or _cores()) + _WAITING
    with ThreadPoolExecutor(workers) as pool:
        _wait([pool.submit(work.run, file) for _ in range(workers)], stop=work.stop)


def _wait(results: Sequence[Future[None]], *, stop: Callable[[], None]) -> None:
    """Wait for all; on the first error ``stop`` and raise it."""
    try:
        for result in results:
            result.result()
    except BaseException:
        stop()
        raise


def _cores() -> int:
    """How many the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class _Piece:
    """Rows of a matrix, their place in the file, and the tensor they belong to; no matrix: the whole tensor."""

    tensor: int
    offset: int
    matrix: MatrixRows | None = None
    start: int = 0
    stop: int = 0
    importance_C: npt.NDArray[np.float32] | None = None


class _Work:
    """The pieces of all tensors in the order of the file, dealt out to threads."""

    def __init__(self, tensors: Sequence[tuple[TensorPlan, int]], step: Callable[[str], None]) -> None:
        self._tensors, self._step = tensors, step
        self._lock, self._stopped = threading.Lock(), False
        self._pieces = (piece for i in range(len(tensors)) for piece in self._split(i))
        self._left = [sum(1 for _ in self._split(i)) for i in range(len(tensors))]

    def stop(self) -> None:
        """Deal out no more."""
        self._stopped = True

    def run(self, file: ParallelFile) -> None:
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
        if callable(tensor.source):
            yield _Piece(i, offset)
            return
        row_bytes = ggml.row_bytes(tensor.type_name, tensor.shape[-1])
        rows = max(1, PIECE_WEIGHTS // tensor.shape[-1])
        step = rows * -(-_WRITE_BYTES // (rows * row_bytes))
        for expert, matrix in enumerate(tensor.source):
            importance_C = None if tensor.importance_EC is None else tensor.importance_EC[expert]
            for start in range(0, matrix.rows, step):
                stop = min(start + step, matrix.rows)
                yield _Piece(i, offset + start * row_bytes, matrix, start, stop, importance_C)
            offset += matrix.rows * row_bytes

    def _write(self, file: ParallelFile, piece: _Piece) -> None:
        tensor = self._tensors[piece.tensor][0]
        if piece.matrix is None:
            _write_made_rows(file, tensor, piece.offset)
            return
        columns = tensor.shape[-1]
        rows, row_bytes = piece.stop - piece.start, ggml.row_bytes(tensor.type_name, columns)
        room_RB = file.room(piece.offset, rows * row_bytes).reshape(rows, row_bytes)
        step = max(1, PIECE_WEIGHTS // columns)
        for at in range(0, rows, step):
            raw_RC = piece.matrix.read(piece.start + at, piece.start + min(at + step, rows))
            encode(raw_RC, piece.matrix.dtype, tensor.type_name, piece.importance_C, room_RB[at : at + step])
        file.write(piece.offset, room_RB)


def _write_made_rows(file: ParallelFile, tensor: TensorPlan, start: int) -> None:
    assert callable(tensor.source)
    offset = start
    for rows_RC in tensor.source():
        if tensor.type_name == "I32":  # whole numbers, exact in float32 up to 2^24
            done = np.ascontiguousarray(rows_RC, "<i4").view(np.uint8)
        else:
            done = quantize(rows_RC, tensor.type_name)
        file.write(offset, done)
        offset += done.nbytes
    if offset - start != tensor.size_bytes:
        raise ValueError(f"{tensor.name}: {offset - start} bytes where its shape makes {tensor.size_bytes}")


def _check(tensor: TensorPlan) -> None:
    if callable(tensor.source):
        peak = max((float(np.abs(rows).max()) for rows in tensor.source() if rows.size), default=0.0)
        if not np.isfinite(peak):
            raise TsconvertError(
                f"{tensor.name}: values are NaN or infinite; the weights are damaged or training diverged, go back to a"
                " sound checkpoint"
            )
    else:
        peak = max((matrix.check() for matrix in tensor.source), default=0.0)
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
