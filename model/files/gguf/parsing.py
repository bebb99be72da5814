"""One GGUF file, parsed: header, metadata and tensors, each checked against the file's size before it is used."""

import contextlib
import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....common.errors import TsconvertError, label, shown
from ..kinds import kind_of
from . import ggml

GGUF, POWERINFER = "GGUF", "PWRI"
SPARSE = "turbosparse"  # the architecture of tsconvert's own dialect, docs/format.md
MAGICS = {b"GGUF": GGUF, b"PWRI": POWERINFER}
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_DEEPEST_ARRAY = 3
_MOST_ENTRIES = 1 << 22  # tensors, or keys; the largest models have some hundred thousand
_LONGEST_NAME = 1 << 16  # bytes, of a key
_LONGEST_TENSOR_NAME = 512  # ggml takes 64
_POWERINFER_IDS = {16: "I8", 17: "I16", 18: "I32"}
# GGUF value type: (struct code, NumPy type); 8 is a string, 9 an array
_NUMBERS = {
    0: ("B", "<u1"), 1: ("b", "<i1"), 2: ("H", "<u2"), 3: ("h", "<i2"), 4: ("I", "<u4"), 5: ("i", "<i4"),
    6: ("f", "<f4"), 7: ("?", "?"), 10: ("Q", "<u8"), 11: ("q", "<i8"), 12: ("d", "<f8"),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_LAYOUTS = {code: struct.Struct("<" + code) for code, _ in _NUMBERS.values()}
_TYPE_NAMES = {GGUF: {block.id: block.name for block in ggml.TYPES.values()}}
_TYPE_NAMES[POWERINFER] = _TYPE_NAMES[GGUF] | _POWERINFER_IDS


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a file."""

    name: str
    type_name: str
    """As in `ggml.TYPES`."""
    shape: tuple[int, ...]
    """In NumPy's order, the reverse of GGUF's: the last dimension is contiguous."""
    offset: int
    """Where its first byte is in the file."""
    raw: npt.NDArray[np.uint8]
    """Its bytes, a read-only view of the mapped file."""
    file: Path
    """The file, or the shard, that it is in."""

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes in the file."""
        return int(self.raw.nbytes)

    def to_float32(self) -> npt.NDArray[np.float32]:
        """The decoded weights, a copy."""
        return ggml.dequantize(self.raw, self.type_name, self.shape)


class ParsedFile:
    """One file: all of a model, or a shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = _map(path)
        reader = _Reader(path, self.content)
        self.magic, self.version, tensor_count, key_count = _header(reader)
        self.metadata: dict[str, Any] = {}
        self.spans: dict[str, tuple[int, int]] = {}
        for _ in range(key_count):
            key = reader.string("a key", _LONGEST_NAME)
            if key in self.metadata:
                raise reader.damaged(f"key {label(key)} stands there twice")
            start = reader.at
            self.metadata[key] = reader.value(f"key {label(key)}")
            self.spans[key] = start, reader.at
        self.alignment = self._alignment()
        infos = [_tensor_info(reader, self.magic) for _ in range(tensor_count)]
        start = -(-reader.at // self.alignment) * self.alignment
        self.tensors: dict[str, GgufTensor] = {}
        for name, type_name, shape, offset in infos:
            if name in self.tensors:
                raise reader.damaged(f"tensor {label(name)} stands there twice")
            self.tensors[name] = self._tensor(name, type_name, shape, start + offset)
        for one, other in pairwise(sorted(self.tensors.values(), key=lambda tensor: tensor.offset)):
            if one.offset + one.size_bytes > other.offset:
                raise reader.damaged(f"tensors {label(one.name)} and {label(other.name)} overlap")

    @property
    def size_bytes(self) -> int:
        """The bytes of the file."""
        return int(self.content.nbytes)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or value < 8 or value & (value - 1):
            raise TsconvertError(
                f"{self.path}: general.alignment is {shown(value)}, no power of two from 8 up; write the file again"
            )
        return value

    def _tensor(self, name: str, type_name: str, shape: tuple[int, ...], offset: int) -> GgufTensor:
        if shape[-1] % ggml.block_type(type_name).weights:
            raise TsconvertError(
                f"{self.path}: damaged, tensor {label(name)} is {type_name} and has rows of {shape[-1]}; download or"
                " write the file again"
            )
        size = ggml.row_bytes(type_name, shape[-1])
        for n in shape[:-1]:
            size *= n
        if offset % self.alignment:
            raise TsconvertError(
                f"{self.path}: tensor {label(name)} starts at byte {offset}, no multiple of {self.alignment};"
                " write the file again"
            )
        if offset + size > self.size_bytes:
            raise TsconvertError(
                f"{self.path}: cut off, tensor {label(name)} lacks {offset + size - self.size_bytes} bytes at the end;"
                " download or write the file again"
            )
        return GgufTensor(name, type_name, shape, offset, self.content[offset : offset + size], self.path)


def _map(path: Path) -> npt.NDArray[np.uint8]:
    if not path.is_file():
        found = kind_of(path)
        raise TsconvertError(f"{path}: is {found}" if found else f"{path}: no such file; give a GGUF file")
    if path.stat().st_size < 24:
        raise TsconvertError(f"{path}: too short for a GGUF file; download or write it again")
    with path.open("rb") as stream:
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(AttributeError, OSError):  # a system without large pages
        # what is not yet in memory is read in pages of 2 MB, so that rows here and there need few address translations
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


def _header(reader: "_Reader") -> tuple[str, int, int, int]:
    magic = bytes(reader.take(4, "the magic"))
    if magic not in MAGICS:
        found = kind_of(reader.path)
        said = f"is {found}" if found else f"begins with {magic!r}, not with GGUF or PWRI; give a GGUF file"
        raise TsconvertError(f"{reader.path}: {said}")
    version = reader.number("I", "the version")
    if version not in _VERSIONS:
        kind = (
            "big-endian" if int.from_bytes(version.to_bytes(4, "big"), "little") in _VERSIONS else f"version {version}"
        )
        raise TsconvertError(
            f"{reader.path}: GGUF of {kind}; tsconvert reads little-endian versions 2 and 3, get it as one of those"
        )
    tensor_count, key_count = reader.number("Q", "the tensor count"), reader.number("Q", "the key count")
    # a tensor takes at least 8 + 4 + 8 + 4 + 8 bytes of header, a key 8 + 4 + 1
    if tensor_count * 32 + key_count * 13 > reader.left or max(tensor_count, key_count) > _MOST_ENTRIES:
        raise reader.damaged(f"{tensor_count} tensors and {key_count} keys do not fit into the file")
    return MAGICS[magic], version, tensor_count, key_count


def _tensor_info(reader: "_Reader", magic: str) -> tuple[str, str, tuple[int, ...], int]:
    name = reader.string("a tensor's name", _LONGEST_TENSOR_NAME)
    what = f"tensor {label(name)}"
    if not name.isprintable():
        raise reader.damaged(f"{what} has a name that cannot be printed")
    dimensions = reader.number("I", what)
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise reader.damaged(f"{what} has {dimensions} dimensions")
    ne = [reader.number("Q", what) for _ in range(dimensions)]
    type_id, offset = reader.number("I", what), reader.number("Q", what)
    if min(ne) < 1:
        raise reader.damaged(f"{what} has shape {ne[::-1]}")
    type_name = _TYPE_NAMES[magic].get(type_id)
    if type_name is None:
        raise TsconvertError(
            f"{reader.path}: {what} has type id {type_id}, which tsconvert does not know; get the file in another type"
        )
    return name, type_name, tuple(reversed(ne)), offset


class _Reader:
    """A cursor over the mapped header that never reads past the end."""

    def __init__(self, path: Path, content: npt.NDArray[np.uint8]) -> None:
        self.path, self.content, self.at = path, content.data, 0

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def damaged(self, what: str) -> TsconvertError:
        return TsconvertError(f"{self.path}: damaged, {what}; download or write the file again")

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise self.damaged(f"it ends within {what}")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        layout = _LAYOUTS[code]
        return layout.unpack(self.take(layout.size, what))[0]

    def string(self, what: str, most: int | None = None) -> str:
        size = self.number("Q", what)
        if most is not None and size > most:
            raise self.damaged(f"{what} has {size} bytes")
        return bytes(self.take(size, what)).decode("utf-8", errors="replace")

    def value(self, what: str, kind: int | None = None, depth: int = 0) -> Any:
        """A key's value, or an element of type ``kind`` at a ``depth`` of nested arrays."""
        kind = self.number("I", what) if kind is None else kind
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind][0], what)
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY or depth >= _DEEPEST_ARRAY:
            raise self.damaged(f"{what} has value type {kind}")
        kind, count = self.number("I", what), self.number("Q", what)
        if kind in _NUMBERS:
            dtype = np.dtype(_NUMBERS[kind][1])
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()
        if count * 8 > self.left:
            raise self.damaged(f"it ends within {what}")
        return [self.value(what, kind, depth + 1) for _ in range(count)]
