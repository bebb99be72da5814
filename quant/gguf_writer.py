"""The GGUF container, written front to back: header, typed keys, tensor table, then each tensor as it is made.

GGUF version 3, little-endian (ggml/docs/gguf.md). gguf-py's writer wants every tensor whole and knows one magic; here a
tensor comes in pieces, so that experts are stacked and embeddings encoded without ever being in memory together.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..convert.errors import TsconvertError
from . import ggml

GGUF_MAGIC = b"GGUF"
POWERINFER_MAGIC = b"PWRI"
VERSION = 3
ALIGNMENT = 32
_F16_LIMIT = 65520.0  # rounds to infinity from here on
_STRUCT = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_POWERINFER_I32 = 18
Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Value:
    """A metadata value with the exact type that it has in the file."""

    kind: str
    """`u32`, `f32`, `bool`, `str`, ...; of the elements if it is an array."""
    value: Any
    array: bool = False

    def encode(self) -> bytes:
        """Type id and value as they stand in the file."""
        if self.array:
            items = list(self.value)
            return struct.pack("<IIQ", _ARRAY, self._id, len(items)) + b"".join(self._one(item) for item in items)
        return struct.pack("<I", self._id) + self._one(self.value)

    @property
    def _id(self) -> int:
        return _STRING if self.kind == "str" else _STRUCT[self.kind][0]

    def _one(self, item: Any) -> bytes:
        return _string(item) if self.kind == "str" else struct.pack(_STRUCT[self.kind][1], item)


def u32(value: int) -> Value:
    """A 32-bit unsigned count."""
    return Value("u32", value)


def f32(value: float) -> Value:
    """A 32-bit float."""
    return Value("f32", value)


def u64(value: int) -> Value:
    """A 64-bit unsigned count."""
    return Value("u64", value)


def boolean(value: bool) -> Value:
    """A truth value."""
    return Value("bool", value)


def text(value: str) -> Value:
    """A string, stored as UTF-8."""
    return Value("str", value)


def array(kind: str, values: Iterable[Any]) -> Value:
    """An array of elements of ``kind``."""
    return Value(kind, tuple(values), array=True)


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """A tensor that a file is going to hold."""

    name: str
    shape: tuple[int, ...]
    """NumPy order, rows first; the file lists the dimensions the other way round."""
    type_name: str
    chunks: Callable[[], Iterable[Rows]]
    """Makes its rows, in order, as float32 [rows, columns], finite."""

    @property
    def size_bytes(self) -> int:
        """Of its data, padding left out."""
        rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return rows * ggml.row_bytes(self.type_name, self.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A second file beside the one that is asked for."""

    suffix: str
    """What its name has behind the other's."""
    metadata: dict[str, Value]
    tensors: list[TensorPlan]
    magic: bytes = GGUF_MAGIC


def header(metadata: Mapping[str, Value], tensors: Sequence[TensorPlan], magic: bytes = GGUF_MAGIC) -> bytes:
    """Everything before the tensors' data, padded to where the data begins."""
    parts = [magic, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), value.encode()]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", _type_id(tensor.type_name, magic), offset),
        ]
        offset += _padded(tensor.size_bytes)
    whole = b"".join(parts)
    return whole + b"\0" * (_padded(len(whole)) - len(whole))


def file_size(metadata: Mapping[str, Value], tensors: Sequence[TensorPlan]) -> int:
    """The bytes that the file will have."""
    return len(header(metadata, tensors)) + sum(_padded(tensor.size_bytes) for tensor in tensors)


def write_gguf(
    stream: BinaryIO,
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorPlan],
    *,
    magic: bytes = GGUF_MAGIC,
    step: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a GGUF file to ``stream``, one piece of one tensor in memory at a time.

    Args:
        metadata: in the order of the file.
        tensors: likewise.
        magic: the first four bytes.
        step: called with a tensor's name when it is written.

    Raises:
        TsconvertError: a tensor's values do not fit its type.
    """
    stream.write(header(metadata, tensors, magic))
    for tensor in tensors:
        written = 0
        for piece in _encoded(tensor):
            stream.write(piece.data)
            written += piece.nbytes
        if written != tensor.size_bytes:
            raise ValueError(f"{tensor.name}: {written} bytes where its shape makes {tensor.size_bytes}")
        stream.write(b"\0" * (_padded(written) - written))
        step(tensor.name)


def _encoded(tensor: TensorPlan) -> Iterator[npt.NDArray[np.uint8]]:
    for rows_RC in tensor.chunks():
        if tensor.type_name == "I32":  # indices, exact in float32 up to 2^24
            yield np.ascontiguousarray(rows_RC, "<i4").view(np.uint8)
            continue
        if tensor.type_name == "F16" and rows_RC.size:
            peak = float(max(rows_RC.max(), -rows_RC.min()))
            if peak >= _F16_LIMIT:
                raise TsconvertError(
                    f"{tensor.name}: values reach {peak:g} and F16 ends at 65504; choose another type,"
                    f" for this tensor alone with --tensor-type {tensor.name}=F32"
                )
        yield ggml.quantize(rows_RC, tensor.type_name)


def _string(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _type_id(type_name: str, magic: bytes) -> int:
    """The type's number; PowerInfer's for I32 is older than today's."""
    return _POWERINFER_I32 if magic == POWERINFER_MAGIC and type_name == "I32" else ggml.TYPES[type_name].id


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
