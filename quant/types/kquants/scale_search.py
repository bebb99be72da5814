"""The scale of a sub-block by least squares, one sub-block per lane, in the order of operations of ggml-quants.c.

``t`` and ``c`` are the scratch of superblocks.py; x, w and out are rows in it: n values, their error weights, and
bytes for the n levels. ``factors_K`` are the numbers of steps that the range of the values is tried to be cut into.
"""

from typing import Any

import numpy as np

from ..jit import compiled, inlined
from .rounding import TINY, at_most, clamp, magnitude, nearest
from .superblocks import NOTE
from .vectors import any_lane, load, load_bytes, select, store, store_bytes, to_floats, wide, wide_int


@inlined
def _loss(difference: Any, absolute: bool) -> Any:
    return magnitude(difference) if absolute else difference * difference


@inlined
def _first_error(t: Any, x: int, w: int, n: int, top: int, start: Any, low: Any, absolute: bool) -> Any:
    scale, error = wide(np.float32(1)) / start, wide(np.float32(0))
    for i in range(n):
        v = load(t, x + i)
        level = to_floats(clamp(nearest(start * (v - low)), 0, top))
        error += load(t, w + i) * _loss(scale * level + low - v, absolute)
    return error


@inlined
def _try_affine(
    t: Any, x: int, w: int, n: int, top: int, inverse: Any, low: Any, sum_w: Any, sum_x: Any, absolute: bool
) -> Any:
    """Scale, minimum and error of the levels inverse * (x - low), and whether they are defined."""
    zero = wide(np.float32(0))
    sum_l = sum_l2 = sum_xl = zero
    for i in range(n):
        v = load(t, x + i)
        level = to_floats(clamp(nearest(inverse * (v - low)), 0, top))
        store(t, NOTE + i, level)
        weighted = load(t, w + i) * level
        sum_l += weighted
        sum_l2 += weighted * level
        sum_xl += weighted * v
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    above = new_low > zero
    scale = select(above, sum_xl / sum_l2, scale)
    new_low = select(above, zero, new_low)
    error = zero
    for i in range(n):
        error += load(t, w + i) * _loss(scale * load(t, NOTE + i) + new_low - load(t, x + i), absolute)
    return scale, new_low, error, determinant > zero


@compiled
def fit_affine(t: Any, c: Any, x: int, w: int, out: int, n: int, top: int, factors_K: Any, absolute: bool) -> Any:
    """x ~ scale * level + low, levels 0 to ``top`` (make_qkx2_quants and make_qkx3_quants); returns scale and -low.

    Args:
        absolute: count the errors themselves, not their squares.
    """
    zero = wide(np.float32(0))
    low = high = load(t, x)
    sum_w = load(t, w)
    sum_x = sum_w * low
    for i in range(1, n):
        v, weight = load(t, x + i), load(t, w + i)
        low = select(v < low, v, low)
        high = select(v > high, v, high)
        sum_w += weight
        sum_x += weight * v
    low = select(low > zero, zero, low)
    flat, bottom = high == low, low
    start, shift = wide(np.float32(top)) / (high - low), low
    scale = wide(np.float32(1)) / start
    best = _first_error(t, x, w, n, top, start, low, absolute)
    for k in range(factors_K.shape[0]):
        inverse = wide(factors_K[k]) / (high - low)
        new_scale, new_low, error, defined = _try_affine(t, x, w, n, top, inverse, low, sum_w, sum_x, absolute)
        better = defined & (error < best)
        start, shift = select(better, inverse, start), select(better, low, shift)
        best = select(better, error, best)
        scale = select(better, new_scale, scale)
        low = select(better, new_low, low)
    for i in range(n):
        level = clamp(nearest(start * (load(t, x + i) - shift)), 0, top)
        store_bytes(c, out + i, select(flat, wide_int(0), level))
    return select(flat, zero, scale), -select(flat, bottom, low)


@inlined
def largest_in_size(t: Any, x: int, n: int) -> Any:
    """The value that is largest in size, with its sign; the first of several."""
    extreme = largest = wide(np.float32(0))
    for i in range(n):
        v = load(t, x + i)
        size = magnitude(v)
        bigger = size > largest
        largest, extreme = select(bigger, size, largest), select(bigger, v, extreme)
    return extreme


@compiled
def fit_symmetric(t: Any, c: Any, x: int, w: int, out: int, n: int, top: int, factors_K: Any) -> Any:
    """x ~ scale * (level - top), levels 0 to 2 top - 1 (make_qx_quants with rmse_type 1); returns the scale.

    The first factor is -top, the start; the others are tried.
    """
    zero = wide(np.float32(0))
    extreme = largest_in_size(t, x, n)
    dead = magnitude(extreme) < wide(TINY)
    start = scale = best = zero
    for k in range(factors_K.shape[0]):
        inverse = wide(factors_K[k]) / extreme
        sum_lx = sum_l2 = zero
        for i in range(n):
            v, weight = load(t, x + i), load(t, w + i)
            level = to_floats(clamp(nearest(inverse * v), -top, top - 1))
            sum_lx += weight * v * level
            sum_l2 += weight * level * level
        if k == 0:
            start, scale = inverse, select(sum_l2 != zero, sum_lx / sum_l2, zero)
            best = scale * sum_lx
        else:
            better = (sum_l2 > zero) & (sum_lx * sum_lx > best * sum_l2)
            start, scale = select(better, inverse, start), select(better, sum_lx / sum_l2, scale)
            best = select(better, scale * sum_lx, best)
    for i in range(n):
        level = clamp(nearest(start * load(t, x + i)), -top, top - 1) + wide_int(top)
        store_bytes(c, out + i, select(dead, wide_int(0), level))
    return select(dead, zero, scale)


@inlined
def _first_levels(t: Any, c: Any, x: int, w: int, out: int, n: int, inverse: Any, low: int, top: int) -> Any:
    sum_lx = sum_l2 = wide(np.float32(0))
    for i in range(n):
        v, weight = load(t, x + i), load(t, w + i)
        whole = at_most(nearest(inverse * v), top)
        if low:
            whole = clamp(whole, low, top)
        level = to_floats(whole)
        store_bytes(c, out + i, whole)
        sum_lx += weight * v * level
        sum_l2 += weight * level * level
    return sum_lx, sum_l2


@inlined
def _improve(t: Any, c: Any, x: int, w: int, out: int, n: int, low: int, top: int, sum_lx: Any, sum_l2: Any) -> Any:
    """Move one level at a time to where the rest wants it, at most five rounds; returns the sums for the scale.

    ``low`` below zero: signed levels not under it, which only need a positive sum_l2 afterwards. A lane in which a
    round changes nothing is left alone by further rounds, so lanes need not stop together.
    """
    zero = wide(np.float32(0))
    for _ in range(5):
        changed = zero > zero
        for i in range(n):
            v, weight = load(t, x + i), load(t, w + i)
            old = load_bytes(c, out + i)
            if low:
                old = (old << wide_int(24)) >> wide_int(24)
            level = to_floats(old)
            rest_lx = sum_lx - weight * v * level
            rest_l2 = sum_l2 - weight * level * level
            new = at_most(nearest(v * rest_l2 / rest_lx), top)
            moves = rest_lx > zero
            if low:
                new = clamp(new, low, top)
            else:
                moves = moves & (rest_l2 > zero)
            moves = moves & (new != old)
            level = to_floats(new)
            new_lx = rest_lx + weight * v * level
            new_l2 = rest_l2 + weight * level * level
            if low:
                moves = moves & (new_l2 > zero)
            moves = moves & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            store_bytes(c, out + i, select(moves, new, old))
            sum_lx, sum_l2 = select(moves, new_lx, sum_lx), select(moves, new_l2, sum_l2)
            changed = changed | moves
        if not any_lane(changed):
            break
    return sum_lx, sum_l2


@compiled
def fit_signed(t: Any, c: Any, x: int, w: int, out: int, n: int, top: int) -> Any:
    """x ~ scale * (level - top) by moving single levels (make_q3_quants); returns the scale."""
    zero = wide(np.float32(0))
    extreme = largest_in_size(t, x, n)
    dead = magnitude(extreme) < wide(TINY)
    sum_lx, sum_l2 = _first_levels(t, c, x, w, out, n, wide(np.float32(-top)) / extreme, -top, top - 1)
    sum_lx, sum_l2 = _improve(t, c, x, w, out, n, -top, top - 1, sum_lx, sum_l2)
    for i in range(n):
        store_bytes(c, out + i, select(dead, wide_int(0), load_bytes(c, out + i) + wide_int(top)))
    return select(dead, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero))


@compiled
def fit_positive(t: Any, c: Any, x: int, w: int, out: int, n: int, top: int) -> Any:
    """x ~ scale * level for values not below zero, levels 0 to ``top`` (make_qp_quants); returns the scale."""
    zero, one = wide(np.float32(0)), wide(np.float32(1))
    high = zero
    for i in range(n):
        v = load(t, x + i)
        high = select(high > v, high, v)
    dead = high < wide(TINY)
    inverse, best = zero, zero
    for k in range(9):  # ggml starts from the middle, then tries -4 to 4
        offset = 0 if k == 0 else k - 5 + (k > 4)
        trial = wide(np.float32(0.1) * np.float32(offset) + np.float32(top)) / high
        scale, error = one / trial, zero
        for i in range(n):
            v = load(t, x + i)
            whole = nearest(trial * v)
            whole = whole & wide_int(255) if k == 0 else at_most(whole, top)
            difference = v - scale * to_floats(whole)
            error += load(t, w + i) * difference * difference
        better = error < best
        if k == 0:
            better = zero == zero
        inverse, best = select(better, trial, inverse), select(better, error, best)
    sum_lx, sum_l2 = _first_levels(t, c, x, w, out, n, inverse, 0, top)
    sum_lx, sum_l2 = _improve(t, c, x, w, out, n, 0, top, sum_lx, sum_l2)
    for i in range(n):
        store_bytes(c, out + i, select(dead, wide_int(0), load_bytes(c, out + i)))
    return select(dead, zero, select(sum_l2 > zero, sum_lx / sum_l2, zero))
