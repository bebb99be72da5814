"""LANES super-blocks side by side: the scratch memory that all K-quant encoders work in, and the way in and out.

Lane b of every vector belongs to super-block b, so that the kernels read like C for one super-block.
Scratch, one row per vector: ``t`` float32 [FLOAT_ROWS, LANES] and ``c`` uint8 [BYTE_ROWS, LANES], with the rows below.
Suffixes: B super-blocks, P super-blocks per row, K tried factors.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import compiled, inlined
from .rounding import from_half, to_half
from .vectors import LANES, array_fields, load, square_root, store, store_bytes, wide, wide_int

BLOCK = 256  # weights of a super-block, QK_K in ggml
MAX_SUBS = 16
# Rows of t: the weights, their importances, one sub-block's error weights and what a fit notes, results per sub-block.
X, IMPORTANCE = 0, 256
ERROR_WEIGHT = 512
NOTE = ERROR_WEIGHT + 32
SCALE = NOTE + 32
LOW = SCALE + MAX_SUBS
SUM = LOW + MAX_SUBS
FLOAT_ROWS = SUM + MAX_SUBS
# Rows of c: the levels of the weights, of the scales and of the minima, and the encoded super-block.
LEVEL, SCALE_LEVEL, LOW_LEVEL = 0, 256, 256 + MAX_SUBS
CODE = LOW_LEVEL + MAX_SUBS
BYTE_ROWS = CODE + 256

_SQUARE = 16  # rows and columns that are transposed at a time
_I32, _I64 = ir.IntType(32), ir.IntType(64)


def aligned(rows: int, dtype: Any) -> npt.NDArray[Any]:
    """Uninitialised [rows, LANES] that start on a cache line, so that no vector crosses one."""
    size = np.dtype(dtype).itemsize * rows * LANES
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    lanes: npt.NDArray[Any] = raw[start : start + size].view(dtype).reshape(rows, LANES)
    return lanes


@inlined
def store_half(c: Any, row: int, v: Any) -> Any:
    """Put ``v`` in half precision into two rows of bytes; returns the value that it has there."""
    half = to_half(v)
    store_bytes(c, row, half)
    store_bytes(c, row + 1, half >> wide_int(8))
    return from_half(half)


@inlined
def spread(t: Any, twice: bool) -> Any:
    """The mean square of the super-block's weights, or twice that: sigma2 of ggml's importance-weighted encoders."""
    total = wide(np.float32(0))
    for i in range(BLOCK):
        v = load(t, X + i)
        total += v * v
    return (total + total if twice else total) / wide(np.float32(BLOCK))


@inlined
def weigh_by_importance(t: Any, first: int, n: int, sigma2: Any) -> Any:
    """Error weights importance * sqrt(sigma2 + x^2) of a sub-block; returns their sum."""
    total = wide(np.float32(0))
    for i in range(n):
        v = load(t, X + first + i)
        weight = load(t, IMPORTANCE + first + i) * square_root(sigma2 + v * v)
        store(t, ERROR_WEIGHT + i, weight)
        total += weight
    return total


def _columns_of(builder: Any, vectors: list[Any]) -> list[Any]:
    """The columns of _SQUARE vectors of _SQUARE elements, in log2(_SQUARE) rounds that interleave two halves."""
    deal = [i // 2 + _SQUARE * (i % 2) for i in range(_SQUARE)]
    halves = [ir.Constant(ir.VectorType(_I32, _SQUARE), [i + first for i in deal]) for first in (0, _SQUARE // 2)]
    for _ in range(_SQUARE.bit_length() - 1):
        pairs = zip(vectors[: _SQUARE // 2], vectors[_SQUARE // 2 :], strict=True)
        vectors = [builder.shuffle_vector(a, b, half) for a, b in pairs for half in halves]
    return vectors


@intrinsic
def transpose(
    typingctx: Any,  # noqa: ARG001
    source: Any, from_rows: Any, from_column: Any, target: Any, to_rows: Any, to_column: Any,  # noqa: ARG001
) -> Any:  # fmt: skip
    """Transpose a square: target[to_rows[j], to_column + i] = source[from_rows[i], from_column + j], i and j < _SQUARE.

    Args:
        source, target: contiguous two-dimensional arrays of the same kind.
        from_rows, to_rows: int64 [_SQUARE], contiguous.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(context.get_data_type(source.dtype), _SQUARE)
        places = []
        for k in (0, 3):
            array = array_fields(context, builder, signature.args[k], args[k])
            numbers = array_fields(context, builder, signature.args[k + 1], args[k + 1]).data
            width = builder.extract_value(array.shape, 1)
            for i in range(_SQUARE):
                row = builder.load(builder.gep(numbers, [ir.Constant(_I64, i)]))
                offset = builder.add(builder.mul(row, width), args[k + 2])
                places.append(builder.bitcast(builder.gep(array.data, [offset]), kind.as_pointer()))
        columns = _columns_of(builder, [builder.load(place, align=1) for place in places[:_SQUARE]])
        for column, place in zip(columns, places[_SQUARE:], strict=True):
            builder.store(column, place, align=1)
        return context.get_dummy_value()

    return types.void(source, from_rows, types.int64, target, to_rows, types.int64), codegen


@compiled
def load_superblocks(x_B: Any, first: int, importance_P: Any, t: Any, rows: Any) -> None:
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
    for lane in range(0, LANES, _SQUARE):
        for i in range(0, BLOCK, _SQUARE):
            transpose(x_B, rows[0, lane:], i, t, rows[2, X + i :], lane)
            if period:
                transpose(importance_P, rows[1, lane:], i, t[IMPORTANCE:], rows[2, i:], lane)


@compiled
def store_superblocks(c: Any, out_B: Any, rows: Any) -> None:
    """The encoded lanes into the super-blocks that `load_superblocks` took; lanes that fill up write the last again."""
    size = out_B.shape[1]
    for lane in range(0, LANES, _SQUARE):
        for start in range(0, size, _SQUARE):
            i = min(start, size - _SQUARE)
            transpose(c[CODE:], rows[2, i:], lane, out_B, rows[0, lane:], i)
