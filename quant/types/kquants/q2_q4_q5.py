"""Q2_K, Q4_K and Q5_K: a weight is d * scale * level - dmin * minimum (quantize_q2_K, _q4_K, _q5_K of ggml).

Block layouts (ggml-common.h), in bytes:
    Q2_K   16 scale | minimum << 4, 64 levels, d, dmin
    Q4_K   d, dmin, 12 scales and minima of 6 bits, 128 levels
    Q5_K   d, dmin, 12 scales and minima of 6 bits, 32 fifth bits, 128 levels
"""

from typing import Any

import numpy as np

from ..jit import compiled, inlined
from .rounding import at_most, clamp, magnitude, nearest
from .scale_search import fit_affine, fit_positive
from .superblocks import (
    BLOCK,
    CODE,
    ERROR_WEIGHT,
    LEVEL,
    LOW,
    LOW_LEVEL,
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
from .vectors import LANES, load, load_bytes, select, square_root, store, store_bytes, to_floats, wide, wide_int


@inlined
def _weigh_by_size(t: Any, first: int, n: int, bits: int) -> None:
    """Error weights |x|, plus the sub-block's root mean square for Q4_K and Q5_K."""
    base = wide(np.float32(0))
    if bits > 2:
        for i in range(n):
            v = load(t, X + first + i)
            base += v * v
        base = square_root(base / wide(np.float32(n)))
    for i in range(n):
        store(t, ERROR_WEIGHT + i, base + magnitude(load(t, X + first + i)))


@inlined
def _fit_blocks(t: Any, c: Any, bits: int, n: int, factors_K: Any, weighted: bool) -> None:
    sigma2 = wide(np.float32(0))
    if weighted:
        sigma2 = spread(t, bits > 2)
    for j in range(BLOCK // n):
        if weighted:
            store(t, SUM + j, weigh_by_importance(t, j * n, n, sigma2))
        else:
            _weigh_by_size(t, j * n, n, bits)
        absolute = bits == 2 and not weighted
        first = j * n
        scale, low = fit_affine(t, c, X + first, ERROR_WEIGHT, LEVEL + first, n, (1 << bits) - 1, factors_K, absolute)
        store(t, SCALE + j, scale)
        store(t, LOW + j, low)


@inlined
def _round_to_largest(t: Any, c: Any, values: int, levels: int, n: int, top: int) -> Any:
    """Levels 0 to ``top`` of the scales or minima, in proportion to the largest; returns the step."""
    zero, most = wide(np.float32(0)), wide(np.float32(top))
    largest = zero
    for j in range(n):
        v = load(t, values + j)
        largest = select(v > largest, v, largest)
    inverse = select(largest > zero, most / largest, zero)
    for j in range(n):
        level = nearest(inverse * load(t, values + j)) & wide_int(255)
        store_bytes(c, levels + j, at_most(level, top) if top == 63 else level)
    return largest / most


@inlined
def _cut_levels(c: Any, top: int) -> None:
    for row in range(SCALE_LEVEL, CODE):
        store_bytes(c, row, at_most(load_bytes(c, row), top))


@inlined
def _store_scales_6(c: Any, row: int) -> None:
    """Eight scales and eight minima of 6 bits into 12 bytes, then back, as what a decoder sees."""
    four, six = wide_int(4), wide_int(6)
    low4, low6 = wide_int(15), wide_int(63)
    for j in range(4):
        scale, later_scale = load_bytes(c, SCALE_LEVEL + j), load_bytes(c, SCALE_LEVEL + j + 4)
        least, later_least = load_bytes(c, LOW_LEVEL + j), load_bytes(c, LOW_LEVEL + j + 4)
        scale = scale | ((later_scale >> four) << six)
        least = least | ((later_least >> four) << six)
        both = (later_scale & low4) | ((later_least & low4) << four)
        store_bytes(c, row + j, scale)
        store_bytes(c, row + 4 + j, least)
        store_bytes(c, row + 8 + j, both)
        store_bytes(c, SCALE_LEVEL + j, scale & low6)
        store_bytes(c, LOW_LEVEL + j, least & low6)
        store_bytes(c, SCALE_LEVEL + j + 4, (both & low4) | (((scale >> six) << four) & (low6 - low4)))
        store_bytes(c, LOW_LEVEL + j + 4, (both >> four) | (((least >> six) << four) & (low6 - low4)))


@inlined
def _store_scales_4(c: Any, row: int) -> None:
    """Sixteen scales and sixteen minima of 4 bits into 16 bytes, then back, as what a decoder sees."""
    four, low4 = wide_int(4), wide_int(15)
    for j in range(16):
        both = load_bytes(c, SCALE_LEVEL + j) | (load_bytes(c, LOW_LEVEL + j) << four)
        store_bytes(c, row + j, both)
        store_bytes(c, SCALE_LEVEL + j, both & low4)
        store_bytes(c, LOW_LEVEL + j, (both >> four) & low4)


@inlined
def _round_weights(t: Any, c: Any, n: int, top: int, d: Any, dmin: Any) -> None:
    """Levels of the weights with the rounded scales; where the scale came out zero those of the fit stay."""
    zero = wide(np.float32(0))
    for j in range(BLOCK // n):
        scale = d * to_floats(load_bytes(c, SCALE_LEVEL + j))
        low = dmin * to_floats(load_bytes(c, LOW_LEVEL + j))
        keep = scale == zero
        for i in range(j * n, j * n + n):
            level = clamp(nearest((load(t, X + i) + low) / scale), 0, top)
            store_bytes(c, LEVEL + i, select(keep, load_bytes(c, LEVEL + i), level))


@inlined
def store_levels_2(c: Any, row: int) -> None:
    """Two bits of each level: four weights, 32 apart, in a byte (Q2_K, Q3_K)."""
    for half in range(2):
        for i in range(32):
            byte = wide_int(0)
            for k in range(4):
                level = load_bytes(c, LEVEL + 128 * half + 32 * k + i) & wide_int(3)
                byte |= level << wide_int(2 * k)
            store_bytes(c, row + 32 * half + i, byte)


@inlined
def _store_levels_4(c: Any, row: int) -> None:
    """Four bits of each level: two weights, 32 apart, in a byte."""
    low4 = wide_int(15)
    for pair in range(4):
        for i in range(32):
            level = load_bytes(c, LEVEL + 64 * pair + i) & low4
            later = load_bytes(c, LEVEL + 64 * pair + 32 + i) & low4
            store_bytes(c, row + 32 * pair + i, level | (later << wide_int(4)))


@inlined
def _store_fifth_bits(c: Any, row: int) -> None:
    for i in range(32):
        byte = wide_int(0)
        for j in range(8):
            byte |= (load_bytes(c, LEVEL + 32 * j + i) >> wide_int(4)) << wide_int(j)
        store_bytes(c, row + i, byte)


@compiled
def encode_affine(
    x_B: Any, importance_P: Any, out_B: Any, bits: int, factors_K: Any, t: Any, c: Any, rows: Any
) -> None:
    """Encode super-blocks [B, 256] into [B, block bytes] with ``bits`` a level: 2, 4 or 5."""
    n, top, scale_top = (16, 3, 15) if bits == 2 else (32, (1 << bits) - 1, 63)
    subs, weighted = BLOCK // n, importance_P.shape[0] > 0
    steps = CODE + 80 if bits == 2 else CODE
    for first in range(0, x_B.shape[0], LANES):
        load_superblocks(x_B, first, importance_P, t, rows)
        _fit_blocks(t, c, bits, n, factors_K, weighted)
        if weighted:
            scale = fit_positive(t, c, SCALE, SUM, SCALE_LEVEL, subs, scale_top)
            low = fit_positive(t, c, LOW, SUM, LOW_LEVEL, subs, scale_top)
            if bits == 5:  # only there ggml looks again
                _cut_levels(c, 63)
        else:
            scale = _round_to_largest(t, c, SCALE, SCALE_LEVEL, subs, scale_top)
            low = _round_to_largest(t, c, LOW, LOW_LEVEL, subs, scale_top)
        d, dmin = store_half(c, steps, scale), store_half(c, steps + 2, low)
        if bits == 2:
            _store_scales_4(c, CODE)
        else:
            _store_scales_6(c, CODE + 4)
        _round_weights(t, c, n, top, d, dmin)
        if bits == 2:
            store_levels_2(c, CODE + 16)
        elif bits == 4:
            _store_levels_4(c, CODE + 16)
        else:
            _store_fifth_bits(c, CODE + 16)
            _store_levels_4(c, CODE + 48)
        store_superblocks(c, out_B, rows)
