"""ggml's row functions in NumPy, for x86 processors that its compiled ones cannot run on.

libggml-python's ggml-cpu is built for AVX2, FMA and F16C; without them its first call would end the process. ggml-base,
which encodes and decodes, needs none of them. Block types with kernels of our own never come here.
"""

import ctypes
import functools
import platform
from typing import Any

import numpy as np

from ....common.progress import note

NEEDED = ("AVX2", "FMA3", "F16C")
_VEC_DOT = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
)  # fmt: skip
_ROW = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_keep: list[Any] = []  # what has an address must stay


def lacking() -> list[str]:
    """The instructions that ggml-cpu needs and this processor, or NPY_DISABLE_CPU_FEATURES, does not have."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return []
    features = getattr(getattr(np, "_core", None), "_multiarray_umath", None)
    known: dict[str, bool] = getattr(features, "__cpu_features__", {})
    return [name for name in NEEDED if not known.get(name, True)]


def vec_dot(type_name: str, to_float: int) -> int:
    """The address of a ggml vec_dot for rows of a type, decoded by ``to_float``, with rows of float32."""
    decode, said = _ROW(to_float), [False]

    def dot(n: int, out: Any, _bs: int, row: int, _bx: int, x: int, _by: int, _rows: int) -> None:
        if not said[0]:
            said[0] = True
            note(
                f"this processor has no {', '.join(lacking())}: {type_name} is computed by NumPy, many times slower;"
                " Q4_0, Q8_0, Q4_K, Q6_K and F16 have kernels that run here"
            )
        values = np.empty(n, np.float32)
        decode(row, values.ctypes.data, n)
        given = np.ctypeslib.as_array(ctypes.cast(x, ctypes.POINTER(ctypes.c_float)), (n,))
        out[0] = float(values @ given)

    return _address(_VEC_DOT(dot))


@functools.cache
def copy_floats() -> int:
    """The address of a function that copies a row of float32: what F32's from_float is."""

    def copy(source: int, target: int, count: int) -> None:
        ctypes.memmove(target, source, 4 * count)

    return _address(_ROW(copy))


def _address(function: Any) -> int:
    _keep.append(function)
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
