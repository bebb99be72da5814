"""K-quant encoders that work on many super-blocks at once: ggml's bytes, many times faster.

What ggml_quantize_chunk does block after block is done here with one super-block per vector lane (vectors.py), each
lane in ggml's own order of roundings. The bytes are those of ggml built for x86-64 without fused multiply-add, as
libggml-python and llama.cpp's own base library are; on other processors compilers may fuse, and ggml itself is used.
"""

import ctypes
import functools
import hashlib
import platform
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....model.files.gguf import ggml
from ..jit import cached
from .q2_q4_q5 import encode_affine
from .q3_q6 import encode_3, encode_6
from .superblocks import BLOCK, BYTE_ROWS, FLOAT_ROWS, aligned

_building = threading.Lock()
_BITS = {"Q2_K": 2, "Q3_K": 3, "Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
# (first offset, step, count) of the numbers of levels that are tried, without and with importances
_AFFINE_TRIES = {
    "Q2_K": ((-0.5, 0.1, 16), (-0.9, 0.05, 37)),
    "Q4_K": ((-1.0, 0.1, 21), (-0.9, 0.05, 37)),
    "Q5_K": ((-0.5, 0.1, 16), (-0.9, 0.05, 37)),
}


def quantize_rows(
    rows_RC: npt.NDArray[np.float32], type_name: str, importance_C: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8] | None:
    """Encode rows of weights on this thread, without the GIL.

    Args:
        rows_RC: [rows, columns] float32, contiguous and finite.
        importance_C: [columns] float32, the weight of each column's error; None counts all alike.

    Returns:
        [rows, row bytes] uint8, equal to ggml_quantize_chunk's; None where the type, the columns or the processor are
        not covered.
    """
    rows, columns = rows_RC.shape
    if type_name not in _BITS or columns % BLOCK or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    blocks = rows * columns // BLOCK
    out = np.empty((rows, ggml.row_bytes(type_name, columns)), np.uint8)
    if blocks:
        x_B = _writeable(rows_RC).reshape(blocks, BLOCK)
        importance_P = np.zeros((0, BLOCK), np.float32)
        if importance_C is not None:
            importance_P = np.array(importance_C, np.float32).reshape(columns // BLOCK, BLOCK)
        scratch = aligned(FLOAT_ROWS, np.float32), aligned(BYTE_ROWS, np.uint8), np.empty((3, BLOCK), np.int64)
        with _building:
            encode = _compiled_encoders()[type_name not in _AFFINE_TRIES]
        tries = _tries(type_name, importance_C is not None)
        encode(x_B, importance_P, out.reshape(blocks, -1), _BITS[type_name], *tries, *scratch)
    return out


def _writeable(rows_RC: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The same memory as an array that claims to be writeable: Numba would compile all again for one that is not."""
    if rows_RC.flags.writeable:
        return rows_RC
    memory = memoryview((ctypes.c_float * rows_RC.size).from_address(rows_RC.ctypes.data))
    return np.frombuffer(memory, np.float32)


@functools.cache
def _tries(type_name: str, weighted: bool) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The factors that the fits of the weights, and of Q3_K's scales, try; computed in float32 as C does."""
    if type_name in _AFFINE_TRIES:
        first, step, count = _AFFINE_TRIES[type_name][weighted]
        steps_K = np.float32(first) + np.float32(step) * np.arange(count, dtype=np.float32)
        return steps_K + np.float32((1 << _BITS[type_name]) - 1), steps_K
    steps_K = np.float32(0.1) * np.array([0, *range(-9, 0), *range(1, 10)], np.float32)
    return -(np.float32(1 << (_BITS[type_name] - 1)) + steps_K), -(np.float32(32) + steps_K)


def _stamp() -> int:
    """A number that changes with any source that is compiled: Numba's cache looks at this file only."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("*.py")), Path(__file__).parents[1] / "jit.py"):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")


@functools.cache
def _compiled_encoders() -> tuple[Any, Any]:
    """The encoders of the types with a minimum (Q2_K, Q4_K, Q5_K) and of those without."""
    stamp = _stamp()

    @cached
    def affine(
        x_B: Any, importance_P: Any, out_B: Any, bits: int, factors_K: Any, _: Any, t: Any, c: Any, rows: Any
    ) -> int:
        encode_affine(x_B, importance_P, out_B, bits, factors_K, t, c, rows)
        return stamp

    @cached
    def symmetric(
        x_B: Any, importance_P: Any, out_B: Any, bits: int, factors_K: Any, scales_K: Any, t: Any, c: Any, rows: Any
    ) -> int:
        if bits == 3:
            encode_3(x_B, importance_P, out_B, factors_K, scales_K, t, c, rows)
        else:
            encode_6(x_B, importance_P, out_B, factors_K, t, c, rows)
        return stamp

    return affine, symmetric
