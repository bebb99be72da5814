"""The typed values of a GGUF file's keys."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

_STRUCT = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"), "i32": (5, "<i"),
    "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"), "f64": (12, "<d"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9


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
        return encode_string(item) if self.kind == "str" else struct.pack(_STRUCT[self.kind][1], item)


@dataclass(frozen=True)
class Verbatim:
    """A metadata value as it stood in another file."""

    content: bytes
    """Type id and value."""

    def encode(self) -> bytes:
        """The same bytes."""
        return self.content


u16, i32, u32, u64, f32, boolean, text = (
    partial(Value, kind) for kind in ("u16", "i32", "u32", "u64", "f32", "bool", "str")
)


def array(kind: str, values: Iterable[Any]) -> Value:
    """An array of elements of ``kind``."""
    return Value(kind, tuple(values), array=True)


def encode_string(value: str) -> bytes:
    """Length and UTF-8, as keys, names and values have them."""
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
