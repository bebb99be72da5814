"""What compiled code knows of each GGUF type, and how an input is made ready for it.

F32, F16 and BF16 rows meet the float32 input, which keeps the accuracy of the file. The types of block_groups.py meet
an input of bytes with a scale per 32 (rounded_inputs.py); all others go through ggml's vec_dot, which says what it
wants.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.files.gguf import ggml
from .compiling import compiled
from .memory import call_row
from .parameters import TYPE, BlockType, Parameters
from .rounded_inputs import round_input
from .row_kernels import kernels
from .simd import block_tiles, float_vectors
from .simd.block_groups import RUN, WITH_MINIMA

# What `kind` of a type may be.
UNKNOWN, FLOATS, OWN, GGML, OWN_AS_Q8_0, OWN_AS_Q8_1, OWN_AS_Q8_K = range(7)
_SHARING = 8  # runs of 32 that have one scale in Q8_K


def kind_of(type_name: str) -> int:
    """FLOATS, OWN (own kernels), GGML, or UNKNOWN: no type to compute with."""
    if type_name in float_vectors.KINDS:
        return FLOATS
    if type_name in block_tiles.KINDS:
        return OWN
    functions = ggml.row_functions(type_name)
    return GGML if functions.vec_dot and functions.to_float else UNKNOWN


def type_record(type_name: str, *, as_llama_cpp: bool = False) -> npt.NDArray[Any]:
    """A record TYPE [], with addresses of this process; the type's kernels are compiled or loaded.

    Args:
        as_llama_cpp: inputs of own kernels are rounded as coarsely as there.
    """
    functions, kind, record = ggml.row_functions(type_name), kind_of(type_name), np.zeros((), TYPE)
    if as_llama_cpp and kind == OWN:
        small = OWN_AS_Q8_1 if type_name in WITH_MINIMA else OWN_AS_Q8_0
        kind = OWN_AS_Q8_K if ggml.TYPES[type_name].weights == _SHARING * RUN else small
    if kind != UNKNOWN:
        made = kernels(type_name)
        record[()] = (kind, functions.vec_dot, functions.to_float, functions.from_float, made.products, made.add)
    return record


def input_bytes(columns: int, type_names: Iterable[str]) -> int:
    """Bytes that hold an input of ``columns`` values as any of the types wants it; a multiple of 64."""
    sizes = [64]
    for name in type_names:
        if kind_of(name) == OWN:
            sizes.append(block_tiles.input_bytes(columns))
        elif kind_of(name) == GGML:
            block = ggml.row_functions(name).dot_type
            sizes.append(-(-columns // block.weights) * block.size_bytes)
    return -(-max(sizes) // 64) * 64


@compiled
def prepare_inputs(
    params: Parameters, kind: BlockType, x: int, columns: int, tokens: int, target: int, stride: int, form: int
) -> int:
    """Bring float32 inputs into the form that rows of a type meet; nothing to do if they are in it already.

    Args:
        x: address of the inputs, one behind the other.
        target, stride: where the first goes, and bytes from one to the next.
        form: what this function returned when it last wrote there, 0 at first.
    """
    if kind.kind == FLOATS:
        return form
    wanted = kind.from_float if kind.kind == GGML else kind.kind
    if wanted != form:
        for t in range(tokens):
            if kind.kind == GGML:
                call_row(wanted, x + 4 * columns * t, target + stride * t, columns)
            else:
                sharing = _SHARING if kind.kind == OWN_AS_Q8_K else 1
                halved = int(kind.kind == OWN_AS_Q8_0) + 2 * int(kind.kind == OWN_AS_Q8_1)
                round_input(params, x + 4 * columns * t, columns, target + stride * t, sharing, halved)
    return wanted
