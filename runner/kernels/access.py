"""Reading the table of a step: intrinsics, because compiled code does it everywhere and calls are slow to compile.

The table is int64: NUMBERS numbers, then two words an array, its address and the bytes from one row to the next.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

NUMBERS = 24
TENSOR_FIELDS = 6
TYPE_FIELDS = 6
_I64, _DOUBLE = ir.IntType(64), ir.DoubleType()


def _word(builder: Any, address: Any, index: Any, kind: Any = _I64) -> Any:
    return builder.load(builder.gep(builder.inttoptr(address, kind.as_pointer()), [index]))


def _whole(value: int) -> Any:
    return ir.Constant(_I64, value)


def _array(builder: Any, table: Any, array: Any, part: int) -> Any:
    return _word(builder, table, builder.add(builder.mul(array, _whole(2)), _whole(NUMBERS + part)))


def _row(builder: Any, table: Any, array: Any, row: Any) -> Any:
    return builder.add(_array(builder, table, array, 0), builder.mul(row, _array(builder, table, array, 1)))


@intrinsic
def number(typingctx: Any, table: Any, which: Any) -> Any:  # noqa: ARG001
    """A number of the table at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return _word(builder, args[0], args[1])

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def real(typingctx: Any, table: Any, which: Any) -> Any:  # noqa: ARG001
    """A number that is kept as a double."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return _word(builder, args[0], args[1], _DOUBLE)

    return types.float64(types.int64, types.int64), codegen


@intrinsic
def at(typingctx: Any, table: Any, array: Any, row: Any) -> Any:  # noqa: ARG001
    """The address of a row of an array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return _row(builder, *args)

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def row_bytes(typingctx: Any, table: Any, array: Any) -> Any:  # noqa: ARG001
    """Bytes from one row of an array to the next."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return _array(builder, args[0], args[1], 1)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def tensor_of(typingctx: Any, table: Any, layer: Any, role: Any) -> Any:  # noqa: ARG001
    """The address of a tensor's row of the weight table, array 0; embedding and head are in the layer after all."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        row = _row(builder, args[0], _whole(0), args[1])
        return builder.add(row, builder.mul(args[2], _whole(8 * TENSOR_FIELDS)))

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def type_field(typingctx: Any, type_table: Any, type_id: Any, field: Any) -> Any:  # noqa: ARG001
    """A field of a type, of the type table (rows.py) at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return _word(builder, args[0], builder.add(builder.mul(args[1], _whole(TYPE_FIELDS)), args[2]))

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def add_to(typingctx: Any, address: Any, index: Any, more: Any) -> Any:  # noqa: ARG001
    """Add to an int64 that no other thread writes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        place = builder.gep(builder.inttoptr(args[0], _I64.as_pointer()), [args[1]])
        builder.store(builder.add(builder.load(place), args[2]), place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
