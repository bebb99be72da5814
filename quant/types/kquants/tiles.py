"""What all K-quant encoders share: tiles of LANES super-blocks side by side, rounding, half precision.

Lane b of every vector belongs to super-block b of the tile, so that the kernels read like C for one super-block.
Scratch, one row per vector: ``t`` float32 [FLOAT_ROWS, LANES] and ``c`` uint8 [BYTE_ROWS, LANES], with the rows below.
Suffixes: B super-blocks, P super-blocks per row, K tried factors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from .simd import LANES, as_floats, as_ints, load, select, square_root, store, store_bytes, wide, wide_int

BLOCK = 256  # weights of a super-block, QK_K in ggml
MAX_SUBS = 16
# Rows of t: the weights, their importances, one sub-block's error weights and what a fit notes, results per sub-block.
X, IMPORTANCE = 0, 256
ERROR_WEIGHT = 512
NOTE = ERROR_WEIGHT + 32
SCALE = NOTE + 32
LOW = SCALE + MAX_SUBS
SUM = LOW + MAX_SUBS
FLOAT_ROWS = SUM + MAX_SUBS
# Rows of c: the levels of the weights, of the scales and of the minima, and the encoded super-block.
LEVEL, SCALE_LEVEL, LOW_LEVEL = 0, 256, 256 + MAX_SUBS
CODE = LOW_LEVEL + MAX_SUBS
BYTE_ROWS = CODE + 256

# Below this ggml takes a group for zero (GROUP_MAX_EPS).
TINY = np.float32(1e-15)
inlined: Any = njit(nogil=True, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
compiled: Any = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def aligned(rows: int, dtype: Any) -> npt.NDArray[Any]:
    """Uninitialised [rows, LANES] that start on a cache line, so that no vector crosses one."""
    size = np.dtype(dtype).itemsize * rows * LANES
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    lanes: npt.NDArray[Any] = raw[start : start + size].view(dtype).reshape(rows, LANES)
    return lanes


@inlined
def magnitude(v: Any) -> Any:
    """|v| (fabsf)."""
    return as_floats(as_ints(v) & wide_int(0x7FFFFFFF))


@inlined
def nearest(v: Any) -> Any:
    """ggml's nearest_int: ties to even below 2^22, and beyond that the same wrong integer as in C."""
    return (as_ints(v + wide(np.float32(12582912.0))) & wide_int(0x007FFFFF)) - wide_int(0x00400000)


@inlined
def at_most(level: Any, high: int) -> Any:
    """The smaller of ``level`` and an integer."""
    above = wide_int(high)
    return select(level < above, level, above)


@inlined
def clamp(level: Any, low: int, high: int) -> Any:
    """``level`` held between two integers."""
    below = wide_int(low)
    return at_most(select(level > below, level, below), high)


@inlined
def to_half(v: Any) -> Any:
    """The bits of ``v`` in half precision, rounded to nearest even (GGML_FP32_TO_FP16)."""
    bits = as_ints(v)
    size = bits & wide_int(0x7FFFFFFF)
    # 2^(13 + exponent) is so large that the last bit of a sum with it is the last bit of the half.
    exponent = clamp(size & wide_int(0x7F800000), 113 << 23, 143 << 23)
    large = exponent + wide_int(13 << 23)
    steps = as_ints(as_floats(size) + as_floats(large)) - large
    half = ((exponent - wide_int(113 << 23)) >> wide_int(13)) + steps
    half = select(size < wide_int(0x47800000), at_most(half, 0x7C00), wide_int(0x7C00))
    half = select(size > wide_int(0x7F800000), wide_int(0x7E00), half)
    return half | ((bits >> wide_int(16)) & wide_int(0x8000))


@inlined
def from_half(half: Any) -> Any:
    """The value of half precision bits (GGML_FP16_TO_FP32)."""
    size = half & wide_int(0x7FFF)
    value = as_ints(as_floats(size << wide_int(13)) * wide(np.float32(2.0**112)))
    value = select(size < wide_int(0x7C00), value, (size << wide_int(13)) | wide_int(0x7F800000))
    return as_floats(value | ((half & wide_int(0x8000)) << wide_int(16)))


@inlined
def store_half(c: Any, row: int, v: Any) -> Any:
    """Put ``v`` in half precision into two rows of bytes; returns the value that it has there."""
    half = to_half(v)
    store_bytes(c, row, half)
    store_bytes(c, row + 1, half >> wide_int(8))
    return from_half(half)


@inlined
def spread(t: Any, twice: bool) -> Any:
    """The mean square of the super-block's weights, or twice that: sigma2 of ggml's importance-weighted encoders."""
    total = wide(np.float32(0))
    for i in range(BLOCK):
        v = load(t, X + i)
        total += v * v
    return (total + total if twice else total) / wide(np.float32(BLOCK))


@inlined
def weigh_by_importance(t: Any, first: int, n: int, sigma2: Any) -> Any:
    """Error weights importance * sqrt(sigma2 + x^2) of a sub-block; returns their sum."""
    total = wide(np.float32(0))
    for i in range(n):
        v = load(t, X + first + i)
        weight = load(t, IMPORTANCE + first + i) * square_root(sigma2 + v * v)
        store(t, ERROR_WEIGHT + i, weight)
        total += weight
    return total
