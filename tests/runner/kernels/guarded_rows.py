"""Rows that end where memory ends: `python guarded_rows.py` computes with every type; a byte read too far kills it.

Weights lie in the mapped file, and the last tensor may end with it. Here a page that nobody may read follows.
"""

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from test_row_kernels import FLOATS, ROWS, TOKENS, Kernel

from tsconvert.model.files.gguf import ggml
from tsconvert.runner.kernels import weight_types

_NO_ACCESS = 0
_RNG = np.random.default_rng(7)


def guarded(raw: np.ndarray) -> np.ndarray:
    """The same bytes, the last of them just before a page without access."""
    pages = -(-raw.nbytes // mmap.PAGESIZE) + 1
    region = mmap.mmap(-1, pages * mmap.PAGESIZE)
    whole = np.frombuffer(region, np.uint8)
    end = (pages - 1) * mmap.PAGESIZE
    placed = whole[end - raw.nbytes : end]
    placed[:] = raw.reshape(-1)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(whole.ctypes.data + end), ctypes.c_size_t(mmap.PAGESIZE), _NO_ACCESS) == 0
    return placed.reshape(raw.shape)


def compute(type_name: str, columns: int) -> None:
    """Products with one input and with many, of a run and of listed rows; sums; decoding. Random bytes are weights."""
    size = ggml.row_bytes(type_name, columns)
    raw = guarded(_RNG.integers(0, 256, (ROWS, size), np.uint8))
    kernel, last = Kernel(type_name, raw, columns), np.array([3, ROWS - 1], np.int32)
    x_TC = _RNG.standard_normal((TOKENS, columns)).astype(np.float32)
    for tokens in (1, TOKENS):
        kernel.products(x_TC[:tokens].copy(), None, 0, ROWS)
        kernel.products(x_TC[:tokens].copy(), None, ROWS - 1, 1)
        kernel.products(x_TC[:tokens].copy(), last, 0, 2)
    weights_R, into_C = np.ones(ROWS, np.float32), np.zeros(columns, np.float32)
    for listed, first, count in ((None, 0, ROWS), (None, ROWS - 1, 1), (last, 0, 2)):
        kernel.add(weights_R, listed, first, count, into_C)
    ggml.dequantize(raw[-1], type_name, (columns,))


def main() -> None:
    """Every type that the runner computes with, rows of one block and of several."""
    with np.errstate(all="ignore"):
        for name in ggml.weight_types():
            if weight_types.kind_of(name) == weight_types.UNKNOWN:
                continue
            block = ggml.TYPES[name].weights
            for columns in (1, 16, 77) if name in FLOATS else (block, 3 * block, 4 * block):
                sys.stdout.write(f"{name} {columns}\n")
                sys.stdout.flush()
                compute(name, columns)


if __name__ == "__main__":
    main()
