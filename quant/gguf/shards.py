"""GGUF files that belong together: one model in several shards, or a file and its companions. All are written, or none.

Shards are llama.cpp's (tools/gguf-split): NAME-00001-of-00003.gguf, the model's keys in the first, `split.*` in each.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import TsconvertError
from ...common.files import atomic_file, check_disk, reserved_name
from ...common.progress import progress
from ...model.files.gguf.file import shard_path
from .tensor_plan import TensorPlan
from .tensor_writer import check_tensors
from .values import Value, i32, u16
from .writer import GGUF_MAGIC, Metadata, file_size, tensor_bytes, write_gguf

_MOST_SHARDS = 65535  # split.count is u16


@dataclass(frozen=True, kw_only=True)
class GgufPlan:
    """A file that is going to be written."""

    path: Path
    metadata: Metadata
    tensors: Sequence[TensorPlan]
    magic: bytes = GGUF_MAGIC

    @property
    def size_bytes(self) -> int:
        """The bytes of the file."""
        return file_size(self.metadata, self.tensors)


def sharded(
    out: Path,
    metadata: Metadata,
    tensors: Sequence[TensorPlan],
    *,
    magic: bytes = GGUF_MAGIC,
    max_bytes: int | None = None,
) -> list[GgufPlan]:
    """The files that hold the model: ``out`` alone, or shards if it were larger than ``max_bytes``.

    Raises:
        TsconvertError: there would be too many shards.
    """
    whole = GgufPlan(path=out, metadata=metadata, tensors=tensors, magic=magic)
    if max_bytes is None or whole.size_bytes <= max_bytes:
        return [whole]
    extra = _split_keys(0, 1, len(tensors))
    groups = _groups(tensors, file_size({**metadata, **extra}, []), file_size(extra, []), max_bytes)
    if len(groups) > _MOST_SHARDS:
        raise TsconvertError(f"--split-max-size {max_bytes} makes {len(groups)} files; give a larger size")
    return [
        GgufPlan(
            path=shard_path(out, number, len(groups)),
            metadata={**(metadata if number == 0 else {}), **_split_keys(number, len(groups), len(tensors))},
            tensors=group,
            magic=magic,
        )
        for number, group in enumerate(groups)
    ]


def write_files(files: Sequence[GgufPlan], *, title: str, threads: int | None = None) -> None:
    """Check all values, then write all files; they get their names when all are whole, the first one last.

    Raises:
        TsconvertError: a file exists or another process writes it, a value is NaN, infinite or too large for its
            type, or the disk is full.
    """
    with ExitStack() as names:
        for file in files:
            names.enter_context(reserved_name(file.path))
        check_disk(files[0].path, sum(file.size_bytes for file in files))
        tensors = [tensor for file in files for tensor in file.tensors]
        check_tensors(tensors, threads)
        with progress(title, len(tensors)) as step, ExitStack() as open_files:
            for file in files:
                stream = open_files.enter_context(atomic_file(file.path))
                write_gguf(stream, file.metadata, file.tensors, magic=file.magic, step=step, threads=threads)


def _split_keys(number: int, count: int, tensors: int) -> dict[str, Value]:
    return {"split.no": u16(number), "split.count": u16(count), "split.tensors.count": i32(tensors)}


def _groups(tensors: Sequence[TensorPlan], first: int, other: int, max_bytes: int) -> list[list[TensorPlan]]:
    """Tensors in order, a new group before one would grow past ``max_bytes``; one tensor may be larger."""
    groups: list[list[TensorPlan]] = [[]]
    size = first
    for tensor in tensors:
        if groups[-1] and size + tensor_bytes(tensor) > max_bytes:
            groups.append([])
            size = other
        groups[-1].append(tensor)
        size += tensor_bytes(tensor)
    return groups
