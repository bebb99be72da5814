"""One block of 32 weights as one vector: Q8_0 and Q4_0 in LLVM's vector instructions, for Numba loops.

Each operation is rounded on its own, as in ggml's C (quantize_row_q8_0_ref, quantize_row_q4_0_ref in ggml-quants.c):
nothing is reordered or fused, so the levels are ggml's, bit for bit.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BLOCK = 32
_I8, _I16, _I32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_INTS, _FLOATS, _BYTES = ir.VectorType(_I32, BLOCK), ir.VectorType(_FLOAT, BLOCK), ir.VectorType(_I8, BLOCK)
_SIZE, _SIGN = 0x7FFFFFFF, -0x80000000
_BELOW_HALF = 0x3EFFFFFF  # the float before 0.5: added and cut off it rounds as C's roundf


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * BLOCK))


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * BLOCK)


def _load_bits(builder: Any, address: Any, half_width: bool) -> Any:
    """The block at ``address`` as float32 bits, from bfloat16 or float32."""
    if not half_width:
        return builder.load(builder.inttoptr(address, _INTS.as_pointer()), align=1)
    kind = ir.VectorType(_I16, BLOCK)
    short = builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)
    return builder.shl(builder.zext(short, _INTS), _all(16))


def _largest(builder: Any, size: Any) -> Any:
    kind = ir.FunctionType(_I32, [_INTS])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.umax.v{BLOCK}i32")
    return builder.call(reduce, [size])


def _inverse(builder: Any, scale: Any) -> Any:
    zero = ir.Constant(_FLOAT, 0.0)
    return builder.select(builder.fcmp_ordered("==", scale, zero), zero, builder.fdiv(ir.Constant(_FLOAT, 1.0), scale))


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _q8_0(builder: Any, bits: Any, out: Any) -> Any:
    largest = builder.bitcast(_largest(builder, builder.and_(bits, _all(_SIZE))), _FLOAT)
    scale = builder.fdiv(largest, ir.Constant(_FLOAT, 127.0))
    scaled = builder.fmul(builder.bitcast(bits, _FLOATS), _splat(builder, _inverse(builder, scale), _FLOATS))
    nudge = builder.bitcast(builder.or_(builder.and_(bits, _all(_SIGN)), _all(_BELOW_HALF)), _FLOATS)
    _store(builder, builder.trunc(builder.fptosi(builder.fadd(scaled, nudge), _INTS), _BYTES), out)
    return builder.bitcast(scale, _I32)


def _q4_0(builder: Any, bits: Any, out: Any) -> Any:
    size = builder.and_(bits, _all(_SIZE))
    top = _largest(builder, size)
    # the sign of the first of the largest
    equal = builder.bitcast(builder.icmp_unsigned("==", size, _splat(builder, top, _INTS)), _I32)
    negative = builder.bitcast(builder.icmp_signed("<", bits, _all(0)), _I32)
    first = builder.and_(equal, builder.neg(equal))
    zero = ir.Constant(_I32, 0)
    below = builder.icmp_unsigned("!=", builder.and_(first, negative), zero)
    below = builder.and_(below, builder.icmp_unsigned("!=", top, zero))
    signed = builder.or_(top, builder.select(below, ir.Constant(_I32, _SIGN), zero))
    scale = builder.fdiv(builder.bitcast(signed, _FLOAT), ir.Constant(_FLOAT, -8.0))
    scaled = builder.fmul(builder.bitcast(bits, _FLOATS), _splat(builder, _inverse(builder, scale), _FLOATS))
    level = builder.fptosi(builder.fadd(scaled, ir.Constant(_FLOATS, [8.5] * BLOCK)), _INTS)
    level = builder.select(builder.icmp_signed("<", level, _all(15)), level, _all(15))
    level = builder.trunc(level, _BYTES)
    low, high = (_half_of(builder, level, start) for start in (0, BLOCK // 2))
    _store(builder, builder.or_(low, builder.shl(high, ir.Constant(low.type, [4] * (BLOCK // 2)))), out)
    return builder.bitcast(scale, _I32)


def _half_of(builder: Any, level: Any, start: int) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, BLOCK // 2), list(range(start, start + BLOCK // 2)))
    return builder.shuffle_vector(level, ir.Constant(_BYTES, ir.Undefined), mask)


def _block(emit: Any, half_width: bool) -> Any:
    @intrinsic
    def encode(typingctx: Any, source: Any, out: Any) -> Any:  # noqa: ARG001
        """Encode the block at address ``source``, levels to ``out``; returns the bits of its float32 scale."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            return emit(builder, _load_bits(builder, args[0], half_width), args[1])

        return types.uint32(types.int64, types.int64), codegen

    return encode


@intrinsic
def widen_block(typingctx: Any, source: Any, out: Any) -> Any:  # noqa: ARG001
    """32 bfloat16 at address ``source`` as float32 at ``out``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        _store(builder, _load_bits(builder, args[0], True), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


# (type, bytes of a source value) -> the intrinsic
ENCODERS = {
    (name, size): _block(emit, size == 2) for name, emit in (("Q8_0", _q8_0), ("Q4_0", _q4_0)) for size in (2, 4)
}
