"""Shared libraries that were built against glibc 2.38, for systems with an older one.

llama-cpp-py-sync asks for glibc 2.38 because of four functions, `__isoc23_strtol` and the like, which read binary
numbers (0b1) as well. In a copy of the library their names become those of the functions of old.
"""

import ctypes
import shutil
import struct
from pathlib import Path

NEW, OLD = b"GLIBC_2.38", b"GLIBC_2.2.5"
PREFIX = b"__isoc23_"
_STRTAB, _VERNEED, _VERNEEDNUM, _STRSZ, _LOAD, _DYNAMIC = 5, 0x6FFFFFFE, 0x6FFFFFFF, 10, 1, 2


def loadable(folder: Path, scratch: Path) -> Path:
    """``folder`` if this system loads its libllama.so, otherwise a copy in ``scratch`` for an older glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "__isoc23_strtol"):
        return folder
    for file in folder.glob("*.so*"):
        content = bytearray(file.read_bytes())
        _rename(content)
        (scratch / file.name).write_bytes(content)
        shutil.copymode(file, scratch / file.name)
    return scratch


def _rename(elf: bytearray) -> None:
    """In a little-endian ELF64 file, ask for the old version, under the old names."""
    tables, loads = _dynamic(elf)
    at = {tag: _offset(tables[tag], loads) for tag in (_STRTAB, _VERNEED)}
    strings = slice(at[_STRTAB], at[_STRTAB] + tables[_STRSZ])
    old = bytes(elf[strings]).find(b"\0" + OLD + b"\0") + 1
    need = at[_VERNEED]
    for _ in range(tables[_VERNEEDNUM]):  # Elf64_Verneed: version, count, file, aux, next
        _, count, _, aux, following = struct.unpack_from("<HHIII", elf, need)
        entry = need + aux
        for _ in range(count):  # Elf64_Vernaux: hash, flags, other, name, next
            name, further = struct.unpack_from("<II", elf, entry + 8)
            if elf[strings.start + name :].startswith(NEW + b"\0"):
                struct.pack_into("<I", elf, entry, _hash(OLD))
                struct.pack_into("<I", elf, entry + 8, old)
            entry += further
        need += following
    names = bytes(elf[strings])
    start = names.find(PREFIX)
    while start >= 0:
        end = names.index(b"\0", start)
        elf[strings.start + start : strings.start + end] = names[start + len(PREFIX) : end].ljust(end - start, b"\0")
        start = names.find(PREFIX, end)


def _dynamic(elf: bytearray) -> tuple[dict[int, int], list[tuple[int, int, int]]]:
    """The dynamic section, and (address, size, offset) of what is loaded."""
    table, size, count = struct.unpack_from("<Q", elf, 32)[0], *struct.unpack_from("<HH", elf, 54)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    loads = [(address, length, offset) for kind, _, offset, address, _, length in headers if kind == _LOAD]
    start, length = next((offset, length) for kind, _, offset, _, _, length in headers if kind == _DYNAMIC)
    return dict(struct.iter_unpack("<QQ", elf[start : start + length])), loads


def _offset(address: int, loads: list[tuple[int, int, int]]) -> int:
    return next(offset + address - start for start, length, offset in loads if start <= address < start + length)


def _hash(name: bytes) -> int:
    """The ELF hash of a version's name."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        value = (value ^ ((value & 0xF0000000) >> 24)) & 0x0FFFFFFF
    return value
