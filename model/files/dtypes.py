"""The number types of checkpoints as float32, and back."""

import numpy as np
import numpy.typing as npt

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
BITS: dict[str, type[np.generic]] = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
"""NumPy's type of the bits of each."""
ARRAYS: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
"""NumPy's type of arrays of each: it has no bfloat16."""


def to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of a safetensors tensor as flat float32; exact for all three types."""
    if dtype == "F32":
        return raw.view(np.float32) if raw.ctypes.data % 4 == 0 else raw.copy().view(np.float32)
    aligned = raw if raw.ctypes.data % 2 == 0 else raw.copy()
    if dtype == "F16":
        return aligned.view(np.float16).astype(np.float32)
    return (aligned.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_float32(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """float32 as the bytes of a safetensors tensor, rounded to nearest even."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        return flat.astype(np.float16).view(np.uint8)
    bits = flat.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(flat), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16).view(np.uint8)
