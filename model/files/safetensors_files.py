"""The safetensors files of a checkpoint folder: which there are, and where in them each tensor lies.

The layout is the safetensors library's: u64 length of the header, header (JSON), data.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError, label, shown
from .dtypes import DTYPE_BYTES
from .found_files import no_weights

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_DIMENSIONS = 8
_HEADER_LIMIT_BYTES = 100_000_000  # as in the safetensors library


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes lie: ``start`` and ``size_bytes`` within ``file``."""

    name: str
    file: Path
    dtype: str
    """`F32`, `F16` or `BF16`."""
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def rows(self) -> int:
        """The rows of a matrix, or of all that are stacked; 1 of a vector."""
        return math.prod(self.shape[:-1])

    @property
    def plain(self) -> bool:
        """Whether its bytes lie in the file as the checkpoint has them."""
        return True

    @property
    def stored_bytes(self) -> int:
        """What it takes in the file."""
        return self.size_bytes


class UnreadableTypeError(TsconvertError):
    """A tensor is of a number type that tsconvert does not read."""


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, each known to exist.

    model.safetensors goes before an index, as in transformers: it is the newer where both are there.
    """
    single = folder / SINGLE
    if single.is_file():
        return [single]
    if not (folder / INDEX).is_file():
        raise no_weights(folder, INDEX)
    shards = sorted(set(weight_map(folder).values()))
    for shard in shards:
        if not (folder / shard).is_file():
            raise TsconvertError(f"{folder / shard}: shard is missing (named in {INDEX}); download it again")
    return [folder / shard for shard in shards]


def weight_map(folder: Path) -> dict[str, str]:
    """The index of a checkpoint folder: name of a tensor -> file, each within the folder; empty without an index."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        files: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TsconvertError(f"{index}: not an index with a weight_map; download it again") from None
    for file in files.values():
        name = file if isinstance(file, str) else ""
        if not 0 < len(name.encode("utf-8", "replace")) < 256 or Path(name).name != name:
            raise TsconvertError(
                f"{index}: {shown(file)} is no file name within the folder; do not trust this checkpoint"
            )
    return files


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file, each tensor's extent checked against the file's size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT_BYTES):
            raise TsconvertError(f"{file}: not a safetensors file, or cut off in its header; download it again")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_once)
            header.pop("__metadata__", None)
            infos = {name: _tensor_info(file, name, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise TsconvertError(f"{file}: the safetensors header is damaged; download it again") from None
    _check_extents(file, infos, size)
    return infos


def _check_extents(file: Path, infos: dict[str, TensorInfo], size: int) -> None:
    for info in infos.values():
        if info.start + info.size_bytes > size:
            missing = info.start + info.size_bytes - size
            raise TsconvertError(
                f"{file}: cut off, tensor {label(info.name)} lacks {missing} bytes at the end; download it again"
            )
    ordered = sorted((info for info in infos.values() if info.size_bytes), key=lambda info: info.start)
    for one, other in pairwise(ordered):
        if one.start + one.size_bytes > other.start:
            raise TsconvertError(
                f"{file}: tensors {label(one.name)} and {label(other.name)} overlap; download it again"
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names stands there twice, as the safetensors library wants it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor_info(file: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise UnreadableTypeError(
            f"{file}: tensor {label(name)} is {str(dtype)[:60]}; save it as one of {', '.join(DTYPE_BYTES)}"
        )
    if len(shape) > _MOST_DIMENSIONS or any(type(n) is not int for n in (*shape, start, end)):
        raise ValueError("no shape and no extent")
    if start < 0 or min(shape, default=1) < 0 or end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError("extent and shape differ")
    return TensorInfo(name, file, dtype, shape, base + start, end - start)
