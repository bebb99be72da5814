"""One row of weights, of any GGUF type: its product with an input, and its weighted sum into an accumulator.

F32, F16 and BF16 rows are widened in registers and meet the float32 input, which keeps the accuracy of the file. Rows
of block types go through ggml's vec_dot, which meets the input rounded to the type that it asks for (Q8_0, Q8_K).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from ..quant import ggml
from .native import call_row, call_vec_dot, load_bf16, load_f16, load_f32

# Columns of the type table, one row per ggml type id.
KIND, VEC_DOT, TO_FLOAT, FROM_FLOAT = range(4)
TYPE_FIELDS = 4
# KIND
UNKNOWN, FLOAT32, FLOAT16, BFLOAT16, BLOCKS = range(5)
_KINDS = {"F32": FLOAT32, "F16": FLOAT16, "BF16": BFLOAT16}
# Reordering a sum lets LLVM vectorise it; NaN and infinity keep their meaning.
_SUM = {"reassoc", "contract", "nsz"}
compiled: Any = njit(nogil=True)
compiled_sum: Any = njit(nogil=True, fastmath=_SUM)
# The parts of a step take all its tables, hundreds of arguments that are slow to pass and to compile: they are inlined.
phase: Any = njit(nogil=True, inline="always")


def type_table() -> npt.NDArray[np.int64]:
    """What compiled code knows of each ggml type: [type ids, TYPE_FIELDS], with addresses of this process."""
    table = np.zeros((max(ggml.BY_ID) + 1, TYPE_FIELDS), np.int64)
    for block in ggml.TYPES.values():
        functions = ggml.row_functions(block.name)
        kind = _KINDS.get(block.name, BLOCKS if functions.vec_dot and functions.to_float else UNKNOWN)
        table[block.id] = (kind, functions.vec_dot, functions.to_float, functions.from_float)
    return table


def input_bytes(columns: int) -> int:
    """Bytes that hold an input of ``columns`` values in any type that a vec_dot asks for."""
    types = {ggml.row_functions(name).dot_type for name in ggml.weight_types()}
    return max(-(-columns // block.weights) * block.size_bytes for block in types)


@compiled_sum
def dot_f32(row: int, x: int, n: int) -> Any:
    """Sum of row[i] * x[i] over float32 rows at two addresses."""
    total = np.float32(0)
    for i in range(n):
        total += load_f32(row, i) * load_f32(x, i)
    return total


@compiled_sum
def dot_f16(row: int, x: int, n: int) -> Any:
    """The same with a float16 row."""
    total = np.float32(0)
    for i in range(n):
        total += load_f16(row, i) * load_f32(x, i)
    return total


@compiled_sum
def dot_bf16(row: int, x: int, n: int) -> Any:
    """The same with a bfloat16 row."""
    total = np.float32(0)
    for i in range(n):
        total += load_bf16(row, i) * load_f32(x, i)
    return total


@compiled
def prepare_input(types: Any, type_id: int, x: int, n: int, target: int) -> None:
    """Round the float32 input at ``x`` to what the vec_dot of ``type_id`` takes, at ``target``; floats need none."""
    if types[type_id, KIND] == BLOCKS:
        call_row(types[type_id, FROM_FLOAT], x, target, n)


@compiled
def dot_row(types: Any, type_id: int, row: int, x: int, prepared: int, n: int, out: Any) -> Any:
    """The product of a row of ``n`` weights at ``row`` and an input.

    Args:
        types: the type table.
        x, prepared: addresses of the float32 input and of what `prepare_input` made of it for this type.
        out: float32 array, where vec_dot leaves its result.
    """
    kind = types[type_id, KIND]
    if kind == BLOCKS:
        call_vec_dot(types[type_id, VEC_DOT], n, out.ctypes.data, row, prepared)
        return out[0]
    if kind == FLOAT32:
        return dot_f32(row, x, n)
    if kind == FLOAT16:
        return dot_f16(row, x, n)
    return dot_bf16(row, x, n)


@compiled
def add_row(types: Any, type_id: int, row: int, n: int, scale: float, into: Any, scratch: Any) -> None:
    """into[i] += scale * row[i]. ``scratch`` holds ``n`` float32 values that decoding may overwrite."""
    kind = types[type_id, KIND]
    if kind == FLOAT32:
        for i in range(n):
            into[i] += scale * load_f32(row, i)
    elif kind == FLOAT16:
        for i in range(n):
            into[i] += scale * load_f16(row, i)
    elif kind == BFLOAT16:
        for i in range(n):
            into[i] += scale * load_bf16(row, i)
    else:
        call_row(types[type_id, TO_FLOAT], row, scratch.ctypes.data, n)
        for i in range(n):
            into[i] += scale * scratch[i]


@compiled
def read_row(types: Any, type_id: int, row: int, n: int, into: Any) -> None:
    """into[i] = row[i]."""
    kind = types[type_id, KIND]
    if kind == BLOCKS:
        call_row(types[type_id, TO_FLOAT], row, into.ctypes.data, n)
    else:
        for i in range(n):
            into[i] = np.float32(0)
        add_row(types, type_id, row, n, np.float32(1), into, into)
