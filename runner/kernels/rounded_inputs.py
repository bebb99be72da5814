"""Inputs of own products: rounded to bytes, a scale per run of 32, laid out as block_groups.py lays out weights.

llama.cpp rounds what K-quants meet with one scale for 256 (quantize_row_q8_K_ref), and what others meet with a scale
in half precision (quantize_row_q8_0_ref), with the sum so as well where a type has minima (quantize_row_q8_1_ref). This
can be asked for: the products are then further from those of the float inputs, and a model's numbers are llama.cpp's.

A group of 128 values is 64 signed bytes (the first 16 of each run) and 64 more (the second 16), each value / scale.
After all groups' bytes come, per group, the four scales and four times -scale x (sum of the run's values / scale) / 4;
then, per group, 16 int16: -8 x the sum of the four and four bytes that meet weights in a lane (block_tiles.py), which
makes good for weights that are stored too large.
A last group that is not full is filled up with zeros.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from .compiling import compiled
from .memory import store_f32
from .parameters import Parameters
from .simd.block_groups import GROUP, RUN, RUNS
from .simd.block_tiles import FACTOR_BYTES, LANE_BYTES
from .simd.emit import BYTES, FLOAT, HALF, I8, I16, I32, I64, INTS, Emit, emitted

_FLOATS, _INTS = ir.VectorType(FLOAT, RUN), ir.VectorType(I32, RUN)
_MOST = 127.0


@emitted(types.float32, types.int64)
def _largest_of_run(e: Emit, x: Any) -> Any:
    """The largest magnitude of 32 floats at ``x``."""
    vector, count = e.call(f"llvm.fabs.v{RUN}f32", _FLOATS, e.load(_FLOATS, x)), RUN
    while count > 1:
        count //= 2
        a, b = e.pick(vector, range(count)), e.pick(vector, range(count, 2 * count))
        vector = e.b.select(e.b.fcmp_ordered(">", a, b), a, b)
    return e.b.extract_element(vector, ir.Constant(I32, 0))


@emitted(types.void, types.int64, types.float32, *[types.int64] * 5)
def _round_run(e: Emit, x: Any, largest: Any, halved: Any, low: Any, high: Any, scale_at: Any, sum_at: Any) -> None:
    """32 floats at ``x``: bytes to ``low`` and ``high``, the scale and the sum to the other two addresses."""
    b, zero, most = e.b, ir.Constant(FLOAT, 0.0), ir.Constant(FLOAT, _MOST)
    empty = b.fcmp_ordered("==", largest, zero)
    inverse = b.select(empty, zero, b.fdiv(most, largest))
    whole_scale = b.fdiv(largest, most)
    scale = _halved(e, whole_scale, b.icmp_signed("!=", halved, ir.Constant(I64, 0)))
    rounded = e.call(f"llvm.rint.v{RUN}f32", _FLOATS, b.fmul(e.load(_FLOATS, x), e.splat(inverse, RUN)))
    whole = b.trunc(b.fptosi(rounded, _INTS), ir.VectorType(I8, RUN))
    e.store(e.pick(whole, range(16)), low)
    e.store(e.pick(whole, range(16, 32)), high)
    e.store(scale, scale_at)
    summed = b.icmp_signed("==", halved, ir.Constant(I64, 2))
    total = b.fmul(e.total(rounded), b.select(summed, whole_scale, scale))
    e.store(b.fmul(_halved(e, total, summed), ir.Constant(FLOAT, -0.25)), sum_at)


def _halved(e: Emit, value: Any, whether: Any) -> Any:
    """A float in half precision, if that is asked for."""
    return e.b.select(whether, e.b.fpext(e.b.fptrunc(value, HALF), FLOAT), value)


@emitted(types.void, types.int64, types.int64)
def _zero_run(e: Emit, low: Any, high: Any) -> None:
    """The bytes of 32 zeros."""
    for address in (low, high):
        e.store(e.all(ir.VectorType(I8, 16), 0), address)


@emitted(types.void, *[types.int64] * 2)
def _sum_lanes(e: Emit, group: Any, lanes: Any) -> None:
    """-8 x the lanes' sums of a group's bytes, as int16."""
    total, ones = e.all(INTS, 0), e.all(BYTES, 1)
    for half in (0, GROUP // 2):
        total = e.dot4(total, ones, e.load(BYTES, group, half))
    e.store(e.b.trunc(e.b.mul(total, e.all(INTS, -8)), ir.VectorType(I16, INTS.count)), lanes)


@compiled
def round_input(
    params: Parameters,  # noqa: ARG001
    x: int, columns: int, target: int, sharing: int, halved: int,
) -> None:  # fmt: skip
    """Round ``columns`` floats, a multiple of 32, at address ``x`` into `block_tiles.input_bytes` bytes at ``target``.

    Args:
        sharing: runs of 32 that have one scale: 1, or 8 as llama.cpp's Q8_K has it.
        halved: 1 rounds scales to half precision, as llama.cpp's Q8_0 has them; 2 sums as well, as Q8_1.
    """
    runs = columns // RUN
    groups, largest = (runs + RUNS - 1) // RUNS, np.float32(0)
    for run in range(groups * RUNS):
        group, k = run // RUNS, run % RUNS
        low = target + group * GROUP + k * 16
        factors = target + groups * GROUP + group * FACTOR_BYTES
        if run < runs:
            if run % sharing == 0:
                largest = np.float32(0)
                for other in range(run, min(run + sharing, runs)):
                    largest = max(largest, _largest_of_run(x + 4 * RUN * other))
            sum_at = factors + 4 * (RUNS + k)
            _round_run(x + 4 * RUN * run, largest, halved, low, low + GROUP // 2, factors + 4 * k, sum_at)
        else:
            _zero_run(low, low + GROUP // 2)
            store_f32(factors, k, 0.0)
            store_f32(factors, RUNS + k, 0.0)
    lanes = target + groups * (GROUP + FACTOR_BYTES)
    for group in range(groups):
        _sum_lanes(target + group * GROUP, lanes + group * LANE_BYTES)
