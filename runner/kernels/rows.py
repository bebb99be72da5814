"""What compiled code knows of each GGUF type, and how an input is made ready for it.

F32, F16 and BF16 rows meet the float32 input, which keeps the accuracy of the file. The types of groups.py meet an
input of bytes with a scale per 32 (inputs.py); all others go through ggml's vec_dot, which says what it wants.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...quant.types import ggml
from . import tiles
from .access import TYPE_FIELDS, type_field
from .compiling import compiled
from .groups import RUN
from .inputs import round_input
from .native import call_row

# Columns of the type table, one row per ggml type id.
KIND, VEC_DOT, TO_FLOAT, FROM_FLOAT, PRODUCTS, ADD = range(6)
# KIND
UNKNOWN, FLOATS, OWN, GGML, OWN_AS_Q8_K = range(5)
_SHARING = 8  # runs of 32 that have one scale in Q8_K
_FLOAT_TYPES = ("F32", "F16", "BF16")


def kind_of(type_name: str) -> int:
    """FLOATS, OWN (own kernels), GGML, or UNKNOWN: no type to compute with."""
    if type_name in _FLOAT_TYPES:
        return FLOATS
    if type_name in tiles.KINDS:
        return OWN
    functions = ggml.row_functions(type_name)
    return GGML if functions.vec_dot and functions.to_float else UNKNOWN


def type_table(type_names: Iterable[str], *, as_llama_cpp: bool = False) -> npt.NDArray[np.int64]:
    """[type ids, TYPE_FIELDS] with addresses of this process; kernels of the named types are compiled or loaded.

    Args:
        as_llama_cpp: inputs of K-quants are rounded as coarsely as there.
    """
    from .products import kernels

    table = np.zeros((max(ggml.BY_ID) + 1, TYPE_FIELDS), np.int64)
    for name in dict.fromkeys(type_names):
        functions, kind = ggml.row_functions(name), kind_of(name)
        if as_llama_cpp and kind == OWN and ggml.TYPES[name].weights == _SHARING * RUN:
            kind = OWN_AS_Q8_K
        if kind != UNKNOWN:
            made = kernels(name)
            fields = (kind, functions.vec_dot, functions.to_float, functions.from_float, made.products, made.add)
            table[ggml.TYPES[name].id] = fields
    return table


def input_bytes(columns: int, type_names: Iterable[str]) -> int:
    """Bytes that hold an input of ``columns`` values as any of the types wants it; a multiple of 64."""
    sizes = [64]
    for name in type_names:
        if kind_of(name) == OWN:
            sizes.append(tiles.input_bytes(columns))
        elif kind_of(name) == GGML:
            block = ggml.row_functions(name).dot_type
            sizes.append(-(-columns // block.weights) * block.size_bytes)
    return -(-max(sizes) // 64) * 64


@compiled
def prepare_inputs(
    types: int, type_id: int, x: int, columns: int, tokens: int, target: int, stride: int, form: int
) -> Any:
    """Bring float32 inputs into the form that rows of a type meet; nothing to do if they are in it already.

    Args:
        types: address of the type table.
        x: address of the inputs, one behind the other.
        target, stride: where the first goes, and bytes from one to the next.
        form: what this function returned when it last wrote there, 0 at first.
    """
    kind = type_field(types, type_id, KIND)
    if kind == FLOATS:
        return form
    wanted = type_field(types, type_id, FROM_FLOAT) if kind == GGML else kind
    if wanted != form:
        for t in range(tokens):
            if kind == GGML:
                call_row(wanted, x + 4 * columns * t, target + stride * t, columns)
            else:
                sharing = _SHARING if kind == OWN_AS_Q8_K else 1
                round_input(x + 4 * columns * t, columns, target + stride * t, sharing)
    return wanted
