"""Q8_0 and Q4_0 straight from bfloat16 or float32, a vector a block; the same bits as ggml's.

ggml makes these types at 0.35 and 0.7 billion weights a second and core, which is slower than a disk.
Shape suffixes: R rows, C columns.
"""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
TYPES = ("Q8_0", "Q4_0")
_BYTES = {"Q8_0": 2 + BLOCK, "Q4_0": 2 + BLOCK // 2}
_OVERFLOW = 0x00200000  # float32 bits: up to here the inverse of a scale is infinite, and C leaves the levels open


def quantize(
    rows_RC: npt.NDArray[Any], type_name: str, out_RB: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8] | None:
    """Encode rows of finite weights, on the calling thread, which holds no lock meanwhile.

    Args:
        rows_RC: [rows, columns], contiguous: float32, or uint16 that are bfloat16. 32 divides the columns.
        type_name: one of `TYPES`.
        out_RB: contiguous memory for the result; None takes new memory.

    Returns:
        [rows, row bytes]; None where ggml must do it: a block's scale is so small that its inverse overflows.
    """
    rows, columns = rows_RC.shape
    out = np.empty((rows, columns // BLOCK * _BYTES[type_name]), np.uint8) if out_RB is None else out_RB
    encode = _kernels()[type_name, rows_RC.dtype.itemsize]
    odd = encode(rows_RC.ctypes.data, rows_RC.size // BLOCK, out.reshape(-1), out.ctypes.data)
    return None if odd else out


def widen(raw: npt.NDArray[np.uint16], out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """bfloat16, contiguous, as float32 of the same shape in ``out``; returns it."""
    flat = raw.reshape(-1)
    whole = flat.size // BLOCK
    _kernels()["F32", 2](flat.ctypes.data, whole, out.ctypes.data)
    out.reshape(-1).view(np.uint32)[whole * BLOCK :] = flat[whole * BLOCK :].astype(np.uint32) << 16
    return out


@functools.cache
def _kernels() -> dict[tuple[str, int], Any]:
    """Compiled on first use, and kept in Numba's cache on disk where there is one."""
    try:
        return _build(cache=True)
    except RuntimeError:  # Numba found no folder that it may write to
        return _build(cache=False)


def _build(*, cache: bool) -> dict[tuple[str, int], Any]:
    import numba

    from .blocks32_simd import ENCODERS, widen_block

    half_of = numba.njit(nogil=True, inline="always")(_half)

    def make(name: str, size: int) -> Any:
        encode_block, block_bytes = ENCODERS[name, size], _BYTES[name]

        @numba.njit(nogil=True, cache=cache)
        def encode(source: int, blocks: int, out: Any, address: int) -> int:
            odd = 0
            for b in range(blocks):
                at = b * block_bytes
                scale = encode_block(source + b * BLOCK * size, address + at + 2)
                odd += np.uint32(0) < (scale & np.uint32(0x7FFFFFFF)) <= np.uint32(_OVERFLOW)
                half = half_of(scale)
                out[at], out[at + 1] = half & np.uint32(255), half >> np.uint32(8)
            return odd

        return encode

    @numba.njit(nogil=True, cache=cache)
    def widen_all(source: int, blocks: int, out: int) -> None:
        for b in range(blocks):
            widen_block(source + b * BLOCK * 2, out + b * BLOCK * 4)

    return {(name, size): make(name, size) for name in TYPES for size in (2, 4)} | {("F32", 2): widen_all}


def _half(bits: Any) -> Any:
    """float32 bits as half-precision bits, to nearest even (GGML_FP32_TO_FP16)."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    lost = np.uint32(13)  # bits that the half has no room for
    whole = size - np.uint32(112 << 23)
    if size < np.uint32(113 << 23):  # subnormal as a half: the leading bit counts, and more are lost
        lost = min(np.uint32(126) - (size >> np.uint32(23)), np.uint32(30))
        whole = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        if size < np.uint32(0x00800000):
            whole = np.uint32(0)
    half = whole >> lost
    rest, tie = whole & ((np.uint32(1) << lost) - np.uint32(1)), np.uint32(1) << (lost - np.uint32(1))
    half += np.uint32(rest > tie) | (np.uint32(rest == tie) & half & np.uint32(1))
    return sign | min(half, np.uint32(0x7C00)) if size < np.uint32(0x7F800000) else sign | np.uint32(0x7C00)
