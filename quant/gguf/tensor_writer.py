"""Tensors into a file: checked first, then encoded and written by several threads at once, each a piece at a time.

Where a piece goes is known before it is made, so threads do not wait for each other: while one reads, another encodes
or writes (ggml, Numba's loops and the system's calls all run without Python's lock). Memory is a few pieces a thread,
and two KB for each piece that waits.

Shape suffixes: R rows, C columns, E experts, B bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...common.machine.threads import cores
from ...model.files.gguf import ggml
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
    with _threads(threads or cores()) as pool:
        for checked in [pool.submit(_check, tensor) for tensor in tensors]:
            checked.result()


def write_tensors(
    file: ParallelFile,
    tensors: Sequence[tuple[TensorPlan, int]],
    step: Callable[[str], None],
    threads: int | None = None,
) -> None:
    """Encode each tensor and put it at its offset in ``file``; on an error all threads stop, and it is raised."""
    with _threads((threads or cores()) + _WAITING) as pool:
        pieces = [[pool.submit(piece, file) for piece in _pieces(tensor, offset)] for tensor, offset in tensors]
        for (tensor, _), written in zip(tensors, pieces, strict=True):
            for piece in written:
                piece.result()
            step(tensor.name)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that take no more work after an error."""
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pieces(tensor: TensorPlan, offset: int) -> Iterator[Callable[[ParallelFile], None]]:
    """What writes a tensor at ``offset``, some rows of a matrix at a time."""
    if callable(tensor.source):
        yield partial(_write_made_rows, tensor, offset)
        return
    row_bytes = ggml.row_bytes(tensor.type_name, tensor.shape[-1])
    rows = max(1, PIECE_WEIGHTS // tensor.shape[-1])
    step = rows * -(-_WRITE_BYTES // (rows * row_bytes))
    for expert, matrix in enumerate(tensor.source):
        importance_C = None if tensor.importance_EC is None else tensor.importance_EC[expert]
        for start in range(0, matrix.rows, step):
            span = range(start, min(start + step, matrix.rows))
            yield partial(_write_rows, matrix, span, importance_C, tensor.type_name, offset + start * row_bytes)
        offset += matrix.rows * row_bytes


def _write_rows(
    matrix: MatrixRows, span: range, importance_C: npt.NDArray[np.float32] | None, type_name: str, offset: int,
    file: ParallelFile,
) -> None:  # fmt: skip
    row_bytes = ggml.row_bytes(type_name, matrix.columns)
    room_RB = file.room(offset, len(span) * row_bytes).reshape(len(span), row_bytes)
    step = max(1, PIECE_WEIGHTS // matrix.columns)
    for at in range(0, len(span), step):
        rows = span[at : at + step]
        raw_RC = matrix.read(rows.start, rows.stop)
        encode(raw_RC, matrix.dtype, type_name, importance_C, room_RB[at : at + step])
    file.write(offset, room_RB)


def _write_made_rows(tensor: TensorPlan, start: int, file: ParallelFile) -> None:
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
        # ggml's own encoders end the process, or store a scale of infinity
        blocks = f", more than the F16 scales of {tensor.type_name} may hold"
        raise TsconvertError(
            f"{tensor.name}: values reach {peak:g}{' and F16 ends at 65504' if tensor.type_name == 'F16' else blocks};"
            f" choose another type, for this tensor alone with --tensor-type {tensor.name}=F32"
        )
