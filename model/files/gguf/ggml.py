"""ggml's block types: sizes, encoding and decoding, through the shared libraries of PyPI's libggml-python.

The only file that knows ggml's C interface (ggml.h, ggml-cpu.h). The runner gets the addresses of ggml's row functions
from here and calls them from compiled code.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ....common.errors import TsconvertError
from . import numpy_row_functions

# enum ggml_type. Sizes are asked of the library, so that a number can never disagree with the code that uses it.
_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q8_1": 9, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "Q8_K": 15, "IQ2_XXS": 16, "IQ2_XS": 17, "IQ3_XXS": 18, "IQ1_S": 19,
    "IQ4_NL": 20, "IQ3_S": 21, "IQ2_S": 22, "IQ4_XS": 23, "I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28,
    "IQ1_M": 29, "BF16": 30, "TQ1_0": 34, "TQ2_0": 35, "MXFP4": 39,
}  # fmt: skip
_NOT_WEIGHTS = ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")
_OLDEST_VERSION = (0, 9)


class _Traits(ctypes.Structure):
    """struct ggml_type_traits (ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_weights", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float_ref", ctypes.c_void_p),
    )


class _CpuTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu (ggml-cpu.h)."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("rows", ctypes.c_int64),
    )


@dataclass(frozen=True)
class BlockType:
    """A ggml type: ``weights`` of them are stored together in ``size_bytes``."""

    name: str
    id: int
    weights: int
    size_bytes: int


@dataclass(frozen=True)
class RowFunctions:
    """Addresses of ggml's functions over one row of a type; 0 where ggml has none.

    ``vec_dot(int n, float *s, size_t, const void *x, size_t, const void *y, size_t, int 1)`` takes a row of the type
    as x and a row of ``dot_type`` as y; ``from_float(const float *, void *, int64_t)`` makes y;
    ``to_float(const void *, float *, int64_t)`` decodes x.
    """

    to_float: int
    vec_dot: int
    dot_type: BlockType
    from_float: int


def _load() -> tuple[ctypes.CDLL, ctypes.CDLL | None]:
    """ggml-base, and ggml-cpu where this processor can run it."""
    import libggml

    folder = Path(libggml.__file__).parent / "lib64"
    found = [next(iter(sorted(folder.glob(f"libggml-{part}.*"))), None) for part in ("base", "cpu")]
    if None in found:
        raise TsconvertError(f"{folder}: ggml's libraries are missing; reinstall libggml-python")
    base = ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)
    base.ggml_version.restype = ctypes.c_char_p
    version = base.ggml_version().decode()
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_VERSION:
        raise TsconvertError(f"ggml {version} is too old for tsconvert; run: pip install -U libggml-python")
    base.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    base.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    if numpy_row_functions.lacking():
        return base, None
    cpu = ctypes.CDLL(str(found[1]), mode=ctypes.RTLD_GLOBAL)
    cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CpuTraits)
    cpu.ggml_cpu_init()
    return base, cpu


_BASE, _CPU = _load()


def _block_type(name: str, type_id: int) -> BlockType:
    traits = _BASE.ggml_get_type_traits(type_id).contents
    return BlockType(name, type_id, traits.block_weights, traits.block_bytes)


TYPES: dict[str, BlockType] = {name: _block_type(name, type_id) for name, type_id in _IDS.items()}
BY_ID: dict[int, BlockType] = {block.id: block for block in TYPES.values()}


def version() -> str:
    """The version of the ggml library in use."""
    return str(_BASE.ggml_version().decode())


def block_type(type_name: str) -> BlockType:
    """The block type called ``type_name``.

    Raises:
        TsconvertError: there is none.
    """
    if type_name not in TYPES:
        raise TsconvertError(f"{type_name!r} is no GGUF type; choose one of {', '.join(weight_types())}")
    return TYPES[type_name]


def weight_types() -> list[str]:
    """The types that weights can be stored in."""
    return [name for name in TYPES if name not in _NOT_WEIGHTS]


def needs_importance(type_name: str) -> bool:
    """Whether ``type_name`` can only be encoded with an importance matrix."""
    return bool(_BASE.ggml_quantize_requires_imatrix(block_type(type_name).id))


def row_bytes(type_name: str, columns: int) -> int:
    """The bytes of a row of ``columns`` weights.

    Raises:
        TsconvertError: the type is unknown, or ``columns`` is no multiple of its block.
    """
    block = block_type(type_name)
    if columns % block.weights:
        raise TsconvertError(
            f"{type_name} stores {block.weights} weights together, rows of {columns} do not fit; use F16"
        )
    return columns // block.weights * block.size_bytes


def quantize_chunk(
    rows_RC: npt.NDArray[np.float32], type_name: str, importance_C: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """Encode contiguous, finite rows by ggml itself, on this thread (ggml_quantize_chunk).

    Args:
        rows_RC: [rows, columns] float32.
        importance_C: [columns] float32, contiguous; None counts all columns alike.

    Returns:
        [rows, row bytes] uint8.

    Raises:
        TsconvertError: ggml has no encoder for the type.
    """
    rows, columns = rows_RC.shape
    out = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    weights = None if importance_C is None else importance_C.ctypes.data
    kind = block_type(type_name).id
    done = _BASE.ggml_quantize_chunk(kind, rows_RC.ctypes.data, out.ctypes.data, 0, rows, columns, weights)
    if done != out.nbytes:
        raise TsconvertError(f"ggml {version()} cannot encode {type_name}; choose another type")
    return out


def dequantize(raw: npt.NDArray[np.uint8], type_name: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Decode weights (ggml's to_float) to float32 of ``shape``, whose last dimension is a row.

    Raises:
        TsconvertError: ``raw`` has another size than the shape has in this type, or ggml cannot decode it.
    """
    count = int(np.prod(shape, dtype=np.int64))
    size = count // shape[-1] * row_bytes(type_name, shape[-1]) if count else 0
    if raw.nbytes != size:
        raise TsconvertError(
            f"{type_name} of shape {list(shape)} is {size} bytes, not {raw.nbytes}; the file is damaged, write it again"
        )
    raw = np.ascontiguousarray(raw).reshape(-1)
    if type_name == "F32":
        return np.frombuffer(raw.tobytes(), np.float32).reshape(shape).copy()
    out = np.empty(tuple(shape), np.float32)
    to_float = row_functions(type_name).to_float
    if not to_float:
        raise TsconvertError(f"{type_name} holds no weights that could be decoded")
    if count:
        _ROW_FUNCTION(to_float)(raw.ctypes.data, out.ctypes.data, count)
    return out


_ROW_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


@functools.cache
def row_functions(type_name: str) -> RowFunctions:
    """The addresses of ggml's row functions for a type. They hold for this process only."""
    block = block_type(type_name)
    if _CPU is None:
        return _numpy_functions(block)
    cpu = _CPU.ggml_get_type_traits_cpu(block.id).contents
    dot_type = BY_ID.get(cpu.vec_dot_type, block)
    from_float = _CPU.ggml_get_type_traits_cpu(dot_type.id).contents.from_float
    to_float = _BASE.ggml_get_type_traits(block.id).contents.to_float
    return RowFunctions(to_float or 0, cpu.vec_dot or 0, dot_type, from_float or 0)


def _numpy_functions(block: BlockType) -> RowFunctions:
    """The functions on a processor that ggml-cpu does not run on."""
    traits = _BASE.ggml_get_type_traits(block.id).contents
    if not traits.to_float:  # F32, and what holds no weights
        copy = numpy_row_functions.copy_floats() if block.name == "F32" else 0
        return RowFunctions(0, 0, block, copy)
    vec_dot = numpy_row_functions.vec_dot(block.name, traits.to_float)
    if block.name in ("F16", "BF16", "Q8_0"):  # have own kernels; the runner's caches are stored as these
        return RowFunctions(traits.to_float, vec_dot, block, traits.from_float_ref)
    return RowFunctions(traits.to_float, vec_dot, TYPES["F32"], numpy_row_functions.copy_floats())
