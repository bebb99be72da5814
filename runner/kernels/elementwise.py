"""The small kernels of a step: norms, rotation, expert choice, lists of neurons, activations. Slow twins: tests/runner.

Rows are dealt to threads as one run each, in units of 32. All arrays are given by address.
"""

from typing import Any

import numpy as np
from numba import njit

from .compiling import compiled, compiled_sum
from .float_tiles import exp_shifted, swish_times
from .native import load_f32, load_i32, load_i64, store_f32, store_i32, store_i64

UNIT = 32
SWIGLU, DRELU, REGLU = range(3)


@compiled
def share_of(rows: int, thread: int, threads: int, unit: int) -> Any:
    """The first row of a thread's run; that of the next thread ends it."""
    units = (rows + unit - 1) // unit
    return min(rows, unit * (units * thread // threads))


@compiled_sum
def mean_square(x: int, width: int) -> Any:
    """The mean of the squares of the floats at an address."""
    total = np.float32(0)
    for i in range(width):
        total += load_f32(x, i) * load_f32(x, i)
    return total / np.float32(width)


@compiled
def rms_norm(x: int, weight: int, width: int, eps: float, out: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight; all addresses of floats."""
    scale = np.float32(1.0 / np.sqrt(mean_square(x, width) + eps))
    for i in range(width):
        store_f32(out, i, load_f32(x, i) * scale * load_f32(weight, i))


@compiled
def rotate(x: int, head_dim: int, cos: int, sin: int, rotated: int, first: int, end: int) -> None:
    """Turn neighbouring pairs (2i, 2i+1) of each head by the angles of a position; rows ``first`` to ``end``.

    Args:
        rotated: how many of a head's first dimensions turn; at ``cos`` and ``sin`` stand half as many numbers.
    """
    for r in range(first, end, 2):
        within = r % head_dim
        if within < rotated:
            a, b, c, s = load_f32(x, r), load_f32(x, r + 1), load_f32(cos, within // 2), load_f32(sin, within // 2)
            store_f32(x, r, a * c - b * s)
            store_f32(x, r + 1, a * s + b * c)


@njit(nogil=True, fastmath={"nnan", "nsz", "reassoc"})
def _largest(at: int, count: int) -> Any:
    top = load_f32(at, 0)
    for i in range(1, count):
        top = max(top, load_f32(at, i))
    return top


@compiled
def softmax(at: int, count: int, scale: float) -> Any:
    """Replace ``count`` floats x at an address by exp(scale (x - largest)); returns their sum.

    There is room for 16 more: they are overwritten.
    """
    top = np.float32(_largest(at, count) * scale)
    for i in range(count):
        store_f32(at, i, load_f32(at, i) * scale)
    for i in range(count, count + 16):
        store_f32(at, i, np.float32(-1e30))
    total = np.float32(0)
    for i in range(0, count, 16):
        total += exp_shifted(at + 4 * i, top)
    return total


@compiled
def choose_experts(logits: int, experts: int, chosen: int, choice: int, share: int) -> None:
    """The experts with the largest logits and the softmax over those, as Mixtral routes.

    Each is chosen once, whatever the logits are: lists of a block's tokens have room for one choice of an expert each.

    Args:
        logits, share: addresses of floats [experts] and [chosen].
        choice: address of int64 [chosen].
    """
    for k in range(chosen):
        best = -1
        for e in range(experts):
            taken = False
            for before in range(k):
                taken |= load_i64(choice, before) == e
            if not taken and (best < 0 or load_f32(logits, e) > load_f32(logits, best)):
                best = e
        store_i64(choice, k, best)
        store_f32(share, k, load_f32(logits, best))
    top, total = load_f32(share, 0), np.float32(0)
    for k in range(chosen):
        store_f32(share, k, np.exp(load_f32(share, k) - top))
        total += load_f32(share, k)
    for k in range(chosen):
        store_f32(share, k, load_f32(share, k) / total)


@compiled
def list_above(values: int, step: int, first: int, end: int, threshold: float, listed: int) -> Any:
    """List the numbers from ``first`` to ``end`` whose float, ``step`` apart, reaches a threshold; returns how many."""
    kept = 0
    for j in range(first, end):
        store_i32(listed, kept, j)
        kept += load_f32(values, j * step) >= threshold
    return kept


@compiled
def list_positive(values: int, step: int, first: int, end: int, listed: int) -> Any:
    """The same for floats above zero."""
    kept = 0
    for j in range(first, end):
        store_i32(listed, kept, j)
        kept += load_f32(values, j * step) > 0
    return kept


@compiled
def keep_positive(listed: int, count: int, values: int, step: int) -> Any:
    """Keep the listed numbers whose float is above zero; returns how many."""
    kept = 0
    for i in range(count):
        j = load_i32(listed, i)
        store_i32(listed, kept, j)
        kept += load_f32(values, j * step) > 0
    return kept


@compiled
def keep_nonzero(listed: int, count: int, values: int, step: int) -> Any:
    """Keep the listed numbers whose float is not zero; returns how many."""
    kept = 0
    for i in range(count):
        j = load_i32(listed, i)
        store_i32(listed, kept, j)
        kept += load_f32(values, j * step) != 0
    return kept


@compiled
def activation_of(activation: int, gate: float, up: float) -> Any:
    """silu(gate) * up, relu(gate) * relu(up), or relu(gate) * up, as tables.py numbers them."""
    zero, one = np.float32(0), np.float32(1)
    if activation == SWIGLU:
        return gate / (one + np.exp(-gate)) * up
    if gate <= 0 or (activation == DRELU and up <= 0):
        return zero
    return gate * up


@compiled
def shift(values: int, listed: int, first: int, count: int, least: float) -> None:
    """Zero in place of what is not above ``least``: of ``count`` numbers from ``first`` on, or of those listed."""
    for i in range(count):
        j = load_i32(listed, i) if listed else first + i
        if load_f32(values, j) <= least:
            store_f32(values, j, np.float32(0))


@compiled
def activate(activation: int, listed: int, first: int, count: int, gate: int, up: int, step: int, share: float) -> Any:
    """Turn gates into activations times ``share``; returns how many are not zero.

    Of ``count`` numbers from ``first`` on, or of the int32 list at ``listed``; floats are ``step`` apart.
    """
    fired = 0
    for i in range(count):
        j = (load_i32(listed, i) if listed else first + i) * step
        h = activation_of(activation, load_f32(gate, j), load_f32(up, j))
        fired += h != 0
        store_f32(gate, j, h * share)
    return fired


@compiled
def swish_all(gate: int, up: int, count: int) -> None:
    """Turn ``count`` neighbouring gates into silu(gate) * up."""
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        swish_times(gate + 4 * i, up + 4 * i)
    activate(SWIGLU, 0, whole, count - whole, gate, up, 1, np.float32(1))
