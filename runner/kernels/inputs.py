"""Inputs of own products: rounded to bytes, a scale per run of 32, laid out as groups.py lays out weights.

llama.cpp rounds what K-quants meet with one scale for 256 (quantize_row_q8_K_ref), which can be asked for: the products
are then further from those of the float inputs, and a model's perplexity is llama.cpp's.

A group of 128 values is 64 bytes (the first 16 of each run) and 64 more (the second 16), each value / scale + 128.
After all groups' bytes come, per group, the four scales and four times -scale x (sum of the run's values / scale) / 4.
A last group that is not full is filled up with zeros.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .compiling import compiled
from .groups import GROUP, RUN, RUNS
from .native import store_f32
from .simd import FLOAT, I8, I32, Emit
from .tiles import FACTOR_BYTES

_FLOATS, _INTS = ir.VectorType(FLOAT, RUN), ir.VectorType(I32, RUN)
_MOST = 127.0


@intrinsic
def _largest_of_run(typingctx: Any, x: Any) -> Any:  # noqa: ARG001
    """The largest magnitude of 32 floats at ``x``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        e = Emit(builder, "")
        return _largest(e, e.call(f"llvm.fabs.v{RUN}f32", _FLOATS, e.load(_FLOATS, args[0])))

    return types.float32(types.int64), codegen


@intrinsic
def _round_run(
    typingctx: Any, x: Any, largest: Any, low: Any, high: Any, scale_at: Any, sum_at: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    """32 floats at ``x``: bytes to ``low`` and ``high``, the scale and the sum to the other two addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        e = Emit(builder, "")
        values, largest = e.load(_FLOATS, args[0]), args[1]
        zero, most = ir.Constant(FLOAT, 0.0), ir.Constant(FLOAT, _MOST)
        empty = builder.fcmp_ordered("==", largest, zero)
        inverse = builder.select(empty, zero, builder.fdiv(most, largest))
        scale = builder.fdiv(largest, most)
        rounded = e.call(f"llvm.rint.v{RUN}f32", _FLOATS, builder.fmul(values, e.splat(inverse, RUN)))
        whole = builder.fptosi(rounded, _INTS)
        shifted = builder.trunc(builder.add(whole, e.all(_INTS, 128)), ir.VectorType(I8, RUN))
        e.store(e.pick(shifted, range(16)), args[2])
        e.store(e.pick(shifted, range(16, 32)), args[3])
        total = builder.fmul(e.total(rounded), builder.fmul(scale, ir.Constant(FLOAT, -0.25)))
        e.store(scale, args[4])
        e.store(total, args[5])
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, *[types.int64] * 4), codegen


def _largest(e: Emit, vector: Any) -> Any:
    count = vector.type.count
    while count > 1:
        count //= 2
        a, b = e.pick(vector, range(count)), e.pick(vector, range(count, 2 * count))
        vector = e.b.select(e.b.fcmp_ordered(">", a, b), a, b)
    return e.b.extract_element(vector, ir.Constant(I32, 0))


@intrinsic
def _zero_run(typingctx: Any, low: Any, high: Any) -> Any:  # noqa: ARG001
    """The bytes of 32 zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        e = Emit(builder, "")
        for address in args:
            e.store(e.all(ir.VectorType(I8, 16), -128), address)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@compiled
def round_input(x: int, columns: int, target: int, sharing: int) -> None:
    """Round ``columns`` floats, a multiple of 32, at address ``x`` into `tiles.input_bytes` bytes at ``target``.

    Args:
        sharing: runs of 32 that have one scale: 1, or 8 as llama.cpp's Q8_K has it.
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
            _round_run(x + 4 * RUN * run, largest, low, low + GROUP // 2, factors + 4 * k, factors + 4 * (RUNS + k))
        else:
            _zero_run(low, low + GROUP // 2)
            store_f32(factors, k, 0.0)
            store_f32(factors, RUNS + k, 0.0)
