"""The GGUF container: typed keys, tensor table, and files that are laid out first and filled by several threads.

GGUF version 3, little-endian (ggml/docs/gguf.md). gguf-py's writer wants every tensor whole and knows one magic; here a
tensor comes in pieces, so that experts are stacked and embeddings encoded without ever being in memory together.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..types import ggml
from .pipeline import TensorPlan as TensorPlan
from .pipeline import check_tensors, write_tensors
from .placed_file import PlacedFile
from .sources import Rows as Rows

GGUF_MAGIC = b"GGUF"
POWERINFER_MAGIC = b"PWRI"
VERSION = 3
ALIGNMENT = 32
_STRUCT = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_POWERINFER_I32 = 18


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


@dataclass(frozen=True)
class Verbatim:
    """A metadata value as it stood in another file."""

    content: bytes
    """Type id and value."""

    def encode(self) -> bytes:
        """The same bytes."""
        return self.content


def u16(value: int) -> Value:
    """A 16-bit unsigned count."""
    return Value("u16", value)


def i32(value: int) -> Value:
    """A 32-bit number."""
    return Value("i32", value)


def u32(value: int) -> Value:
    """A 32-bit unsigned count."""
    return Value("u32", value)


def u64(value: int) -> Value:
    """A 64-bit unsigned count."""
    return Value("u64", value)


def f32(value: float) -> Value:
    """A 32-bit float."""
    return Value("f32", value)


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
class Companion:
    """A second file beside the one that is asked for."""

    suffix: str
    """What its name has behind the other's."""
    metadata: dict[str, Value]
    tensors: list[TensorPlan]
    magic: bytes = GGUF_MAGIC


def header(metadata: Mapping[str, Value | Verbatim], tensors: Sequence[TensorPlan], magic: bytes = GGUF_MAGIC) -> bytes:
    """Everything before the tensors' data, padded to where the data begins."""
    parts = [magic, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), value.encode()]
    for tensor, offset in _layout(tensors):
        dims = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", _type_id(tensor.type_name, magic), offset),
        ]
    whole = b"".join(parts)
    return whole + b"\0" * (_padded(len(whole)) - len(whole))


def file_size(metadata: Mapping[str, Value | Verbatim], tensors: Sequence[TensorPlan]) -> int:
    """The bytes that the file will have."""
    return len(header(metadata, tensors)) + sum(_padded(tensor.size_bytes) for tensor in tensors)


def tensor_bytes(tensor: TensorPlan) -> int:
    """What one more tensor adds to a file at most: entry, data, padding."""
    return _padded(len(_string(tensor.name)) + 4 + 8 * len(tensor.shape) + 4 + 8) + _padded(tensor.size_bytes)


def write_gguf(
    stream: BinaryIO,
    metadata: Mapping[str, Value | Verbatim],
    tensors: Sequence[TensorPlan],
    *,
    magic: bytes = GGUF_MAGIC,
    step: Callable[[str], None] = lambda _: None,
    threads: int | None = None,
    checked: bool = False,
) -> None:
    """Write a GGUF file, a piece of a tensor a thread in memory at a time, nothing before all values are found sound.

    Args:
        stream: an empty file on a disk; its position is not moved.
        metadata: in the order of the file.
        tensors: likewise.
        magic: the first four bytes.
        step: called with a tensor's name when it is written.
        threads: None takes the cores that the process may use.
        checked: `check_tensors` has seen the tensors already.

    Raises:
        TsconvertError: a value is NaN, infinite or too large for its type, or the disk is full.
    """
    if not checked:
        check_tensors(tensors, threads)
    head = header(metadata, tensors, magic)
    with PlacedFile(stream, file_size(metadata, tensors)) as file:
        file.write(0, head)
        write_tensors(file, [(tensor, len(head) + start) for tensor, start in _layout(tensors)], step, threads)


def _layout(tensors: Sequence[TensorPlan]) -> Iterator[tuple[TensorPlan, int]]:
    """Each tensor and where its data begin, from the end of the header."""
    offset = 0
    for tensor in tensors:
        yield tensor, offset
        offset += _padded(tensor.size_bytes)


def _string(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _type_id(type_name: str, magic: bytes) -> int:
    """The type's number; PowerInfer's for I32 is older than today's."""
    return _POWERINFER_I32 if magic == POWERINFER_MAGIC and type_name == "I32" else ggml.TYPES[type_name].id


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
