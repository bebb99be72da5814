"""Q3_K and Q6_K: a weight is d * scale * (level - half the levels) (quantize_q3_K and quantize_q6_K of ggml).

Block layouts (ggml-common.h), in bytes:
    Q3_K   32 third bits, 64 levels of 2 bits, 12 scales of 6 bits, d
    Q6_K   128 levels of 4 bits, 64 upper 2 bits, 16 scales, d
"""

from typing import Any

import numpy as np

from ..jit import compiled, inlined
from .q2_q4_q5 import store_levels_2
from .rounding import TINY, at_most, clamp, magnitude, nearest
from .scale_search import fit_signed, fit_symmetric, largest_in_size
from .superblocks import (
    BLOCK,
    CODE,
    ERROR_WEIGHT,
    IMPORTANCE,
    LEVEL,
    SCALE,
    SCALE_LEVEL,
    SUM,
    X,
    load_superblocks,
    spread,
    store_half,
    store_superblocks,
    weigh_by_importance,
)  # fmt: skip
from .vectors import LANES, load, load_bytes, select, store, store_bytes, to_floats, wide, wide_int

_SUB = 16  # weights of a sub-block
_SUBS = BLOCK // _SUB


@inlined
def _signed_byte(value: Any) -> Any:
    return (value << wide_int(24)) >> wide_int(24)


@inlined
def _round_weights(t: Any, c: Any, top: int, offset: int, d: Any) -> None:
    """Levels of the weights with the rounded scales; where the scale came out zero those of the fit stay.

    Args:
        offset: what the levels of the scales have been raised by.
    """
    zero = wide(np.float32(0))
    for j in range(_SUBS):
        level = load_bytes(c, SCALE_LEVEL + j)
        scale = d * to_floats(level - wide_int(offset) if offset else _signed_byte(level))
        keep = scale == zero
        for i in range(j * _SUB, j * _SUB + _SUB):
            level = clamp(nearest(load(t, X + i) / scale), -top, top - 1) + wide_int(top)
            store_bytes(c, LEVEL + i, select(keep, load_bytes(c, LEVEL + i), level))


@inlined
def _fit_6(t: Any, c: Any, factors_K: Any, weighted: bool) -> None:
    for j in range(_SUBS):
        first = j * _SUB
        if not weighted:
            for i in range(_SUB):
                v = load(t, X + first + i)
                store(t, ERROR_WEIGHT + i, v * v)
        w = IMPORTANCE + first if weighted else ERROR_WEIGHT
        store(t, SCALE + j, fit_symmetric(t, c, X + first, w, LEVEL + first, _SUB, 32, factors_K))


@inlined
def _encode_6(t: Any, c: Any) -> None:
    zero, none = wide(np.float32(0)), wide_int(0)
    extreme = largest_in_size(t, SCALE, _SUBS)
    dead = magnitude(extreme) < wide(TINY)
    inverse = wide(np.float32(-128)) / extreme
    for j in range(_SUBS):
        level = select(dead, none, at_most(nearest(inverse * load(t, SCALE + j)), 127))
        store_bytes(c, SCALE_LEVEL + j, level)
        store_bytes(c, CODE + 192 + j, level)
    d = store_half(c, CODE + 208, select(dead, zero, wide(np.float32(1)) / inverse))
    _round_weights(t, c, 32, 0, d)
    if_alive = select(dead, none, wide_int(255))
    low4 = if_alive & wide_int(15)
    for half in range(2):
        for i in range(32):
            row = LEVEL + 128 * half + i
            top_bits = none
            for k in range(4):
                top_bits |= ((load_bytes(c, row + 32 * k) & if_alive) >> wide_int(4)) << wide_int(2 * k)
            store_bytes(c, CODE + 128 + 32 * half + i, top_bits)
            for k in range(2):
                level, later = load_bytes(c, row + 32 * k), load_bytes(c, row + 32 * k + 64)
                store_bytes(c, CODE + 64 * half + 32 * k + i, (level & low4) | ((later & low4) << wide_int(4)))


@inlined
def _fit_3(t: Any, c: Any, factors_K: Any, weighted: bool) -> None:
    sigma2 = spread(t, True)
    for j in range(_SUBS):
        first = j * _SUB
        if weighted:
            store(t, SUM + j, weigh_by_importance(t, first, _SUB, sigma2))
            scale = fit_symmetric(t, c, X + first, ERROR_WEIGHT, LEVEL + first, _SUB, 4, factors_K)
        else:
            for i in range(_SUB):
                v = load(t, X + first + i)
                store(t, ERROR_WEIGHT + i, v * v)
            scale = fit_signed(t, c, X + first, ERROR_WEIGHT, LEVEL + first, _SUB, 4)
        store(t, SCALE + j, scale)


@inlined
def _round_scales_3(t: Any, c: Any) -> Any:
    """Levels 0 to 63 of the scales, in proportion to the largest; returns the step."""
    zero = wide(np.float32(0))
    extreme = largest_in_size(t, SCALE, _SUBS)
    dead = extreme == zero
    inverse = wide(np.float32(-32)) / extreme
    for j in range(_SUBS):
        level = _signed_byte(nearest(inverse * load(t, SCALE + j)))
        level = clamp(level, -32, 31) + wide_int(32)
        store_bytes(c, SCALE_LEVEL + j, select(dead, wide_int(0), level))
    return select(dead, zero, wide(np.float32(1)) / inverse)


@inlined
def _encode_3(t: Any, c: Any, scale: Any) -> None:
    four, low4 = wide_int(4), wide_int(15)
    d = store_half(c, CODE + 108, scale)
    _round_weights(t, c, 4, 32, d)
    for j in range(8):
        level, later = load_bytes(c, SCALE_LEVEL + j), load_bytes(c, SCALE_LEVEL + j + 8)
        store_bytes(c, CODE + 96 + j, (level & low4) | ((later & low4) << four))
    for j in range(4):
        byte = wide_int(0)
        for k in range(4):
            byte |= (load_bytes(c, SCALE_LEVEL + j + 4 * k) >> four) << wide_int(2 * k)
        store_bytes(c, CODE + 104 + j, byte)
    for i in range(32):
        byte = wide_int(0)
        for k in range(8):
            byte |= (load_bytes(c, LEVEL + 32 * k + i) >> wide_int(2)) << wide_int(k)
        store_bytes(c, CODE + i, byte)
    store_levels_2(c, CODE + 32)


@compiled
def encode_6(x_B: Any, importance_P: Any, out_B: Any, factors_K: Any, t: Any, c: Any, rows: Any) -> None:
    """Encode super-blocks [B, 256] as Q6_K [B, 210]."""
    for first in range(0, x_B.shape[0], LANES):
        load_superblocks(x_B, first, importance_P, t, rows)
        _fit_6(t, c, factors_K, importance_P.shape[0] > 0)
        _encode_6(t, c)
        store_superblocks(c, out_B, rows)


@compiled
def encode_3(
    x_B: Any, importance_P: Any, out_B: Any, factors_K: Any, scale_factors_K: Any, t: Any, c: Any, rows: Any
) -> None:
    """Encode super-blocks [B, 256] as Q3_K [B, 110]; ``scale_factors_K`` are tried on the scales themselves."""
    weighted = importance_P.shape[0] > 0
    for first in range(0, x_B.shape[0], LANES):
        load_superblocks(x_B, first, importance_P, t, rows)
        _fit_3(t, c, factors_K, weighted)
        if weighted:
            scale = fit_symmetric(t, c, SCALE, SUM, SCALE_LEVEL, _SUBS, 32, scale_factors_K)
        else:
            scale = _round_scales_3(t, c)
        _encode_3(t, c, scale)
        store_superblocks(c, out_B, rows)
