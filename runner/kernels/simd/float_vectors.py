"""Products and weighted sums of rows of F32, F16 and BF16 in registers, and exponentials: prompts and attention.

The same register blocking as block_tiles.py. Rows are widened to float32 and meet float32 inputs.
"""

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import FLOAT, FLOATS, HALF, I16, I32, I64, INTS, LANES, Emit, emitted, instruction_set

KINDS = ("F32", "F16", "BF16")
SIZES = (4, 2, 2)
_ISA = instruction_set()
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440054690583e-4
# exp(r) for |r| <= ln 2 / 2: Taylor's series to the sixth power, relative error below 2e-7
_SERIES = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LEAST, _MOST = -87.0, 88.0
_SQRT_2_OVER_PI = 0.7978845608028654


def load_floats(e: Emit, kind: int, address: Any, offset: int = 0) -> Any:
    """16 numbers of a float type (an index of KINDS) as float32."""
    if kind == 0:
        return e.load(FLOATS, address, offset)
    if kind == 1:
        return e.b.fpext(e.load(ir.VectorType(HALF, LANES), address, offset), FLOATS)
    bits = e.b.zext(e.load(ir.VectorType(I16, LANES), address, offset), INTS)
    return e.b.bitcast(e.b.shl(bits, e.all(INTS, 16)), FLOATS)


def _addresses(e: Emit, at: Any, count: int) -> list[Any]:
    return [e.load(I64, at, 8 * i) for i in range(count)]


@intrinsic(prefer_literal=True)
def float_tile(
    typingctx: Any, kind: Any, rows: Any, inputs: Any, rows_at: Any, inputs_at: Any, columns: Any, out: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    """As `block_tiles.tile`, of rows of float ``kind`` and float32 inputs; ``columns`` is a multiple of 16."""
    number, row_count, input_count = (each.literal_value for each in (kind, rows, inputs))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        e = Emit(builder, _ISA)
        row_p, input_p = _addresses(e, args[3], row_count), _addresses(e, args[4], input_count)
        sums = [[e.variable(e.all(FLOATS, 0.0)) for _ in input_p] for _ in row_p]
        with e.loop(builder.udiv(args[5], ir.Constant(I64, LANES))) as index:
            at = builder.mul(index, ir.Constant(I64, LANES * SIZES[number]))
            weights = [load_floats(e, number, builder.add(row, at)) for row in row_p]
            at = builder.mul(index, ir.Constant(I64, LANES * 4))
            for t, x in enumerate(input_p):
                values = e.load(FLOATS, builder.add(x, at))
                for r, weight in enumerate(weights):
                    builder.store(e.fma(weight, values, builder.load(sums[r][t])), sums[r][t])
        for r in range(row_count):
            for t in range(input_count):
                e.store(e.total(builder.load(sums[r][t])), args[6], 4 * (t * row_count + r))
        return context.get_dummy_value()

    return types.void(kind, rows, inputs, *[types.int64] * 4), codegen


@emitted(types.int64, *[types.int64] * 3)
def count_large(e: Emit, x: Any, steps: Any, least: Any) -> Any:
    """How many of 64 x ``steps`` floats are, by size, at least the float whose bits ``least`` are; at most 2^24."""
    b, size, bound = e.b, e.all(INTS, 2**31 - 1), e.splat(e.b.trunc(least, I32))
    found = [e.variable(e.all(FLOATS, 0.0)) for _ in range(4)]  # sums that need not wait for each other
    with e.loop(steps) as index:
        at = b.add(x, b.mul(index, ir.Constant(I64, 4 * 4 * LANES)))
        for part, place in enumerate(found):
            large = b.icmp_signed(">=", b.and_(e.load(INTS, at, 4 * LANES * part), size), bound)
            b.store(b.fadd(b.load(place), b.select(large, e.all(FLOATS, 1.0), e.all(FLOATS, 0.0))), place)
    return b.fptosi(e.total(functools.reduce(b.fadd, map(b.load, found))), I64)


@intrinsic(prefer_literal=True)
def blend(
    typingctx: Any, kind: Any, vectors: Any, rows: Any, stride: Any, listed: Any, weights: Any, count: Any, out: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    """out[i] += sum over ``count`` rows of weight x row[i], for 16 x ``vectors`` columns, kept in registers meanwhile.

    ``kind`` (of KINDS) and ``vectors`` are constants. Row r is ``stride`` x (the r-th number of the int32 list, or
    without one r) bytes from ``rows`` on, its weight the r-th float32 at ``weights``.
    """
    number, width = kind.literal_value, vectors.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        e = Emit(builder, _ISA)
        sums = [e.variable(e.load(FLOATS, args[7], 4 * LANES * v)) for v in range(width)]
        four, zero = ir.Constant(I64, 4), ir.Constant(I64, 0)
        has_list = builder.icmp_unsigned("!=", args[4], zero)
        somewhere = builder.select(has_list, args[4], args[5])  # any readable place
        with e.loop(args[6]) as index:
            at = builder.mul(index, four)
            number_of = builder.sext(e.load(I32, builder.add(somewhere, at)), I64)
            row = builder.select(has_list, number_of, index)
            row = builder.add(args[2], builder.mul(row, args[3]))
            share = e.splat(e.load(FLOAT, builder.add(args[5], at)))
            for v, place in enumerate(sums):
                value = load_floats(e, number, row, LANES * SIZES[number] * v)
                builder.store(e.fma(share, value, builder.load(place)), place)
        for v, place in enumerate(sums):
            e.store(builder.load(place), args[7], 4 * LANES * v)
        return context.get_dummy_value()

    return types.void(kind, vectors, *[types.int64] * 6), codegen


_NEAR = 0.35  # where a term more of the series would not be seen
_TANH = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)  # of tanh(y) / y, by powers of y^2


def exponential(e: Emit, x: Any) -> Any:
    """exp of each lane, relative error below 3e-7; arguments are cut to -87 and 88."""
    b, least, most = e.b, e.all(FLOATS, _LEAST), e.all(FLOATS, _MOST)
    x = b.select(b.fcmp_ordered("<", x, least), least, x)
    x = b.select(b.fcmp_ordered(">", x, most), most, x)
    power = e.call(f"llvm.rint.v{LANES}f32", FLOATS, b.fmul(x, e.all(FLOATS, _LOG2E)))
    r = e.fma(power, e.all(FLOATS, -_LN2_LOW), e.fma(power, e.all(FLOATS, -_LN2_HIGH), x))
    total = e.all(FLOATS, _SERIES[0])
    for term in _SERIES[1:]:
        total = e.fma(total, r, e.all(FLOATS, term))
    exponent = b.shl(b.add(b.fptosi(power, INTS), e.all(INTS, 127)), e.all(INTS, 23))
    return b.fmul(total, b.bitcast(exponent, FLOATS))


@emitted(types.float32, types.int64, types.float32)
def exp_shifted(e: Emit, at: Any, shift: Any) -> Any:
    """Replace the 16 floats x at an address by exp(x - shift); returns their sum."""
    values = exponential(e, e.b.fsub(e.load(FLOATS, at), e.splat(shift)))
    e.store(values, at)
    return e.total(values)


@emitted(types.void, types.int64, types.int64)
def swish_times(e: Emit, gate: Any, up: Any) -> None:
    """Replace the 16 floats g at address ``gate`` by g / (1 + exp(-g)) x those at ``up``."""
    g = e.load(FLOATS, gate)
    one_more = e.b.fadd(exponential(e, e.b.fneg(g)), e.all(FLOATS, 1.0))
    e.store(e.b.fmul(e.b.fdiv(g, one_more), e.load(FLOATS, up)), gate)


@emitted(types.void, types.int64, types.int64)
def gelu_times(e: Emit, gate: Any, up: Any) -> None:
    """Replace the 16 floats g at address ``gate`` by gelu(g), by its tanh formula, x those at ``up``.

    g (1 + tanh z) / 2 is g / (1 + exp(-2 z)), with z = sqrt(2 / pi) (g + 0.044715 g^3).
    """
    b, g = e.b, e.load(FLOATS, gate)
    cubic = e.fma(b.fmul(g, g), e.all(FLOATS, 0.044715), e.all(FLOATS, 1.0))
    power = b.fmul(b.fmul(g, e.all(FLOATS, -2 * _SQRT_2_OVER_PI)), cubic)
    one_more = b.fadd(exponential(e, power), e.all(FLOATS, 1.0))
    e.store(b.fmul(b.fdiv(g, one_more), e.load(FLOATS, up)), gate)


@emitted(types.void, types.int64, types.float32, types.float32)
def cap_vector(e: Emit, at: Any, scale: Any, cap: Any) -> None:
    """Replace the 16 floats x at an address by cap tanh(scale x / cap).

    tanh y is 1 - 2 / (1 + exp(2 y)), which near 0 would lose y's last digits; there its series is taken.
    """
    b, one, two = e.b, e.all(FLOATS, 1.0), e.all(FLOATS, 2.0)
    y = b.fmul(e.load(FLOATS, at), e.splat(b.fdiv(scale, cap)))
    squared, series = b.fmul(y, y), e.all(FLOATS, _TANH[0])
    for term in _TANH[1:]:
        series = e.fma(series, squared, e.all(FLOATS, term))
    far = b.fsub(one, b.fdiv(two, b.fadd(exponential(e, b.fmul(y, two)), one)))
    near = b.fcmp_ordered("<", squared, e.all(FLOATS, _NEAR**2))
    e.store(b.fmul(b.select(near, b.fmul(y, series), far), e.splat(cap)), at)
