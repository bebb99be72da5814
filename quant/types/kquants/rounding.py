"""Rounding as ggml's C code does it, on vectors: to integers, to half precision and back."""

from typing import Any

import numpy as np

from ..jit import inlined
from .vectors import as_floats, as_ints, select, wide, wide_int

# Below this ggml takes a group for zero (GROUP_MAX_EPS).
TINY = np.float32(1e-15)


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
