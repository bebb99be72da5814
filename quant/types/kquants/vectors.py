"""Vectors of LANES floats or integers for Numba: one lane per super-block, the same step for all of them.

Operators and the functions below become single LLVM vector instructions (split in parts where the processor's
registers are narrower), each rounded on its own as IEEE 754 says: no reordering, no fused multiply-add. So every lane
computes what a scalar C loop over its block computes, bit for bit.

    Floats   LANES float32     + - * / < > == !=, negation
    Ints     LANES int32       + - & | << >> (of the sign's kind), > ==
    Mask     LANES booleans    & | ~
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

# Two AVX-512 registers: the second fills the time in which the first waits for a sum.
LANES = 32
_FLOAT, _I32, _BYTE = ir.FloatType(), ir.IntType(32), ir.IntType(8)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)
_BYTES, _MASK = ir.VectorType(_BYTE, LANES), ir.VectorType(ir.IntType(1), LANES)


class _Vector(types.Type):
    """A vector type; its name tells it from the others."""


floats_type, ints_type, mask_type = (_Vector(f"{name}x{LANES}") for name in ("floats", "ints", "mask"))


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        kinds = {floats_type: _FLOATS, ints_type: _INTS, mask_type: _MASK}
        super().__init__(dmm, fe_type, kinds[fe_type])


def _operator(function: Any, operands: tuple[Any, ...], result: Any, emit: Callable[..., Any]) -> None:
    """Let ``function`` (an operator) take ``operands`` in compiled code; ``emit(builder, *values)`` writes it."""

    @type_callable(function)
    def _type(context: Any) -> Any:  # noqa: ARG001
        return lambda *given: result if given == operands else None

    @lower_builtin(function, *operands)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:  # noqa: ARG001
        return emit(builder, *args)


def _comparing(name: str, sign: str) -> Callable[..., Any]:
    return lambda builder, a, b: getattr(builder, name)(sign, a, b)


def _method(name: str) -> Callable[..., Any]:
    return lambda builder, *values: getattr(builder, name)(*values)


for _function, _name in (
    (operator.add, "fadd"), (operator.iadd, "fadd"), (operator.sub, "fsub"),
    (operator.mul, "fmul"), (operator.imul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _operator(_function, (floats_type, floats_type), floats_type, _method(_name))
for _function, _name in (
    (operator.add, "add"), (operator.sub, "sub"), (operator.and_, "and_"), (operator.or_, "or_"),
    (operator.ior, "or_"), (operator.lshift, "shl"), (operator.rshift, "ashr"),
):  # fmt: skip
    _operator(_function, (ints_type, ints_type), ints_type, _method(_name))
for _function, _name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.ior, "or_")):
    _operator(_function, (mask_type, mask_type), mask_type, _method(_name))
for _function, _sign in ((operator.lt, "<"), (operator.gt, ">"), (operator.eq, "==")):
    _operator(_function, (floats_type, floats_type), mask_type, _comparing("fcmp_ordered", _sign))
    _operator(_function, (ints_type, ints_type), mask_type, _comparing("icmp_signed", _sign))
_operator(operator.ne, (floats_type, floats_type), mask_type, _comparing("fcmp_unordered", "!="))
_operator(operator.ne, (ints_type, ints_type), mask_type, _comparing("icmp_signed", "!="))
_operator(operator.neg, (floats_type,), floats_type, _method("fneg"))
_operator(operator.invert, (mask_type,), mask_type, _method("not_"))


def _unary(operand: Any, result: Any, emit: Callable[[Any, Any], Any]) -> Any:
    """A function of one vector for compiled code; ``emit(builder, value)`` writes it."""

    @intrinsic
    def function(typingctx: Any, value: Any) -> Any:  # noqa: ARG001
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            return emit(builder, args[0])

        return result(operand), codegen

    return function


def _emit_any(builder: Any, mask: Any) -> Any:
    bits = ir.IntType(LANES)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, bits), ir.Constant(bits, 0))


def _emit_square_root(builder: Any, value: Any) -> Any:
    kind = ir.FunctionType(_FLOATS, [_FLOATS])
    return builder.call(builder.module.declare_intrinsic(f"llvm.sqrt.v{LANES}f32", (), kind), [value])


# The bits of Floats as Ints, and back; Ints converted to Floats; the square root, correctly rounded; whether any lane
# of a Mask is set.
as_ints = _unary(floats_type, ints_type, lambda builder, value: builder.bitcast(value, _INTS))
as_floats = _unary(ints_type, floats_type, lambda builder, value: builder.bitcast(value, _FLOATS))
to_floats = _unary(ints_type, floats_type, lambda builder, value: builder.sitofp(value, _FLOATS))
square_root = _unary(floats_type, floats_type, _emit_square_root)
any_lane = _unary(mask_type, types.boolean, _emit_any)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(_INTS, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


@intrinsic
def wide(typingctx: Any, value: Any) -> Any:  # noqa: ARG001
    """The same float in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, context.cast(builder, args[0], signature.args[0], types.float32), _FLOATS)

    return floats_type(value), codegen


@intrinsic
def wide_int(typingctx: Any, value: Any) -> Any:  # noqa: ARG001
    """The same integer, cut to 32 bits, in all lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, context.cast(builder, args[0], signature.args[0], types.int32), _INTS)

    return ints_type(value), codegen


@intrinsic
def select(typingctx: Any, mask: Any, yes: Any, no: Any) -> Any:  # noqa: ARG001
    """``yes`` in the lanes where ``mask`` is set, else ``no``; both Floats or both Ints."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.select(*args)

    return yes(mask, yes, no), codegen


def array_fields(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The fields (`data`, `shape`) of an array in code that is written, as Numba's page on extending it reads them."""
    return cgutils.create_struct_proxy(array_type)(context, builder, value=array)


def _lanes_at(context: Any, builder: Any, array_type: Any, values: Any, kind: Any) -> Any:
    array, index = values[0], values[1]
    data = array_fields(context, builder, array_type, array).data
    offset = builder.mul(index, ir.Constant(index.type, LANES))
    return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Row ``index`` of a contiguous float32 array [.., LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_lanes_at(context, builder, signature.args[0], args, _FLOATS), align=4)

    return floats_type(array, types.int64), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Put Floats at row ``index`` of a contiguous float32 array [.., LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _lanes_at(context, builder, signature.args[0], args, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, floats_type), codegen


@intrinsic
def store_bytes(typingctx: Any, array: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
    """Put the low bytes of Ints at row ``index`` of a contiguous uint8 array [.., LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _lanes_at(context, builder, signature.args[0], args, _BYTES)
        builder.store(builder.trunc(args[2], _BYTES), place, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, ints_type), codegen


@intrinsic
def load_bytes(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001
    """Row ``index`` of a contiguous uint8 array [.., LANES] as Ints."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _lanes_at(context, builder, signature.args[0], args, _BYTES)
        return builder.zext(builder.load(place, align=1), _INTS)

    return ints_type(array, types.int64), codegen
