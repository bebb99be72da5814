"""Super-blocks into tiles and back: what lies along a row in memory stands below one another in a lane."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import LANES
from .tiles import BLOCK, CODE, IMPORTANCE, X, compiled

TURN = 16  # rows and columns that are transposed at a time
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _transpose(builder: Any, vectors: list[Any]) -> list[Any]:
    """The columns of TURN vectors of TURN elements, in log2(TURN) rounds that deal two halves like packs of cards."""
    deal = [i // 2 + TURN * (i % 2) for i in range(TURN)]
    halves = [ir.Constant(ir.VectorType(_I32, TURN), [i + first for i in deal]) for first in (0, TURN // 2)]
    for _ in range(TURN.bit_length() - 1):
        pairs = zip(vectors[: TURN // 2], vectors[TURN // 2 :], strict=True)
        vectors = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
    return vectors


@intrinsic
def turn(
    typingctx: Any,  # noqa: ARG001
    source: Any, from_rows: Any, from_column: Any, target: Any, to_rows: Any, to_column: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    """Transpose TURN times TURN elements: target[to_rows[j], to_column + i] = source[from_rows[i], from_column + j].

    Args:
        source, target: contiguous two-dimensional arrays of the same kind.
        from_rows, to_rows: int64 [TURN], contiguous.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(context.get_data_type(source.dtype), TURN)
        places = []
        for k in (0, 3):
            array = context.make_array(signature.args[k])(context, builder, args[k])
            numbers = context.make_array(signature.args[k + 1])(context, builder, args[k + 1]).data
            width = builder.extract_value(array.shape, 1)
            for i in range(TURN):
                row = builder.load(builder.gep(numbers, [ir.Constant(_I64, i)]))
                offset = builder.add(builder.mul(row, width), args[k + 2])
                places.append(builder.bitcast(builder.gep(array.data, [offset]), kind.as_pointer()))
        columns = _transpose(builder, [builder.load(place, align=1) for place in places[:TURN]])
        for column, place in zip(columns, places[TURN:], strict=True):
            builder.store(column, place, align=1)
        return context.get_dummy_value()

    return types.void(source, from_rows, types.int64, target, to_rows, types.int64), codegen


@compiled
def load_tile(x_B: Any, first: int, importance_P: Any, t: Any, rows: Any) -> None:
    """Super-blocks ``first`` on, and their importances where given, into lanes; the last one fills what is missing.

    Args:
        rows: int64 [3, 256]; gets the lanes' super-blocks, then their importances' places, and counts up in its last.
    """
    count, period = x_B.shape[0], importance_P.shape[0]
    for i in range(BLOCK):
        rows[2, i] = i
    for lane in range(LANES):
        rows[0, lane] = min(first + lane, count - 1)
        if period:
            rows[1, lane] = rows[0, lane] % period
    for lane in range(0, LANES, TURN):
        for i in range(0, BLOCK, TURN):
            turn(x_B, rows[0, lane:], i, t, rows[2, X + i :], lane)
            if period:
                turn(importance_P, rows[1, lane:], i, t[IMPORTANCE:], rows[2, i:], lane)


@compiled
def store_tile(c: Any, out_B: Any, rows: Any) -> None:
    """The encoded lanes into the super-blocks that `load_tile` took; lanes that only fill up write the last again."""
    size = out_B.shape[1]
    for lane in range(0, LANES, TURN):
        for start in range(0, size, TURN):
            i = min(start, size - TURN)
            turn(c[CODE:], rows[2, i:], lane, out_B, rows[0, lane:], i)
