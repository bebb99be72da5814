"""A tensor of a GGUF file as a Hugging Face checkpoint has it: decoded, its rows in their order there.

Shape suffixes: R rows, B bytes of one, C columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dtypes import from_float32
from ..safetensors_files import TensorInfo
from . import ggml

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class GgufTensorInfo(TensorInfo):
    """Where a tensor lies in a GGUF file, and what makes it the checkpoint's.

    ``start`` is that of the tensor's bytes in the file, ``size_bytes`` of what they decode to.
    """

    type_name: str
    raw_RB: npt.NDArray[np.uint8]
    """Its rows as they are stored; a vector is one row."""
    order_R: Index | None = None
    """For each row of the checkpoint, its number in ``raw_RB``; of a vector, for each value. None: the same."""
    offset: float = 0.0
    """What is added to each value."""

    @property
    def plain(self) -> bool:
        """Whether its bytes lie in the file as the checkpoint has them."""
        return self.type_name == self.dtype and self.order_R is None and not self.offset

    @property
    def stored_bytes(self) -> int:
        """What it takes in the file."""
        return int(self.raw_RB.nbytes)

    def decoded(self, index: slice | Index) -> npt.NDArray[np.uint8]:
        """The bytes of rows in ``dtype``, [rows, bytes of one]."""
        vector = len(self.shape) == 1
        rows = self.raw_RB[index if self.order_R is None or vector else self.order_R[index]]
        if self.type_name == self.dtype and not self.offset and not (vector and self.order_R is not None):
            return np.ascontiguousarray(rows)
        values_RC = ggml.dequantize(rows, self.type_name, (len(rows), self.shape[-1]))
        if vector and self.order_R is not None:
            values_RC = values_RC[:, self.order_R]
        if self.offset:
            values_RC = values_RC + np.float32(self.offset)
        return from_float32(values_RC, self.dtype).reshape(len(rows), -1)


def stored_dtype(type_name: str) -> str:
    """The dtype of a checkpoint that holds all values of a block type: a scale times integers needs float32."""
    return type_name if type_name in ("F16", "BF16") else "F32"


def rope_order(heads: int, size: int, rotated: int) -> Index:
    """For each row of q or k in a checkpoint, where pairs lie half of what rotates apart, its row where ggml has it.

    Args:
        heads: how many there are.
        size: dimensions of one.
        rotated: how many of them rotate, the first ones; in ggml's NORM order pairs are neighbours.
    """
    within_S = np.arange(size, dtype=np.int64)
    within_S[:rotated] = within_S[:rotated].reshape(-1, 2).T.reshape(-1)
    order_HS: Index = np.arange(heads, dtype=np.int64)[:, None] * size + within_S[None, :]
    return order_HS.reshape(-1)
