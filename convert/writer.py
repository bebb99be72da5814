"""Writing: one file or one checkpoint folder at a time, never half of one under its final name.

A checkpoint's header is known before its weights are, so shards are laid out first and tensors written where they
belong, in any order and from any layer; that is what lets a sweep resume.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from .checkpoint import DTYPE_BYTES, INDEX, TensorInfo
from .claim import claimed
from .errors import TsconvertError

PARTIAL = ".partial"
FULL = (errno.ENOSPC, errno.EDQUOT)
_PIECE_BYTES = 1 << 24


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name only when it is whole: `NAME.partial`, fsync, rename. After an error it is gone.

    Raises:
        TsconvertError: another process is writing it.
    """
    partial = path.with_name(path.name + PARTIAL)
    with claimed(partial, path):
        with naming(path), partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    _sync_folder(path.parent)


@contextmanager
def reserved_name(out: Path) -> Iterator[None]:
    """Within, no other process may begin to write the file ``out``: for work that ends in one.

    Raises:
        TsconvertError: ``out`` exists, or another process is writing it.
    """
    refuse_existing(out)
    with claimed(out.with_name(out.name + PARTIAL), out):
        refuse_existing(out)  # its writer may have finished meanwhile
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Full disks and limits named ``path``: the system's errors on writing name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (*FULL, errno.EFBIG):
            error.filename = str(path)
        raise


def write_json(path: Path, content: Any) -> None:
    """``content`` as an indented JSON file, whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")


def refuse_existing(out: Path) -> None:
    """Outputs are never overwritten: what is there may have cost days."""
    if out.exists():
        raise TsconvertError(f"{out}: exists already; choose another --out or remove it first")


def check_disk(out: Path, need_bytes: int) -> None:
    """Stop before work starts when the disk that holds ``out`` lacks the room."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < need_bytes:
        raise TsconvertError(
            f"{out}: needs {need_bytes:,} bytes and {folder} has {free:,} free; make room or choose another --out"
        )


def reserve(stream: IO[bytes], size_bytes: int) -> None:
    """Give the file its full size, on the disk where the system can.

    Raises:
        TsconvertError: the disk is full.
    """
    try:
        os.posix_fallocate(stream.fileno(), 0, size_bytes)
    except AttributeError:  # not on Windows and macOS
        os.truncate(stream.fileno(), size_bytes)
    except OSError as error:
        if error.errno in (*FULL, errno.EFBIG):
            raise TsconvertError(
                f"{stream.name}: the disk has no room for {size_bytes:,} bytes; make room or choose another --out"
            ) from None
        os.truncate(stream.fileno(), size_bytes)


@contextmanager
def atomic_folder(out: Path, *, resume: bool = False, drop: Sequence[str] = ()) -> Iterator[Path]:
    """A folder that gets its name only when all in it is written.

    Args:
        resume: keep what an earlier run left in the partial folder.
        drop: patterns of what is only there to resume from; removed in this order at the very end.

    Yields:
        `OUT.partial`, emptied unless ``resume``. It stays after an error, for `--resume`.

    Raises:
        TsconvertError: ``out`` exists, or another process is writing it.
    """
    refuse_existing(out)
    partial = out.with_name(out.name + PARTIAL)
    with claimed(partial, out, folder=True):
        refuse_existing(out)  # its writer may have finished meanwhile
        if not resume:
            empty(partial)
        with naming(out):
            yield partial
            for path in partial.iterdir():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        for path in [path for pattern in drop for path in sorted(partial.glob(pattern))]:
            path.unlink()
        _sync_folder(partial)
        partial.rename(out)
    _sync_folder(out.parent)


def empty(folder: Path) -> None:
    """Remove all that is in ``folder``; the folder itself, and a lock on it, stay."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def put(stream: BinaryIO, offset: int, content: memoryview) -> None:
    """Write ``content`` at ``offset`` of an unbuffered file, however few bytes the system takes at a time."""
    with naming(Path(stream.name)):
        while content:
            if hasattr(os, "pwrite"):
                done = os.pwrite(stream.fileno(), content, offset)
            else:
                stream.seek(offset)
                done = stream.write(content)
            if not done:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(stream.name))
            content, offset = content[done:], offset + done


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor that a checkpoint is going to hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its data."""
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPE_BYTES[self.dtype]


class CheckpointWriter:
    """Safetensors shards of a plan, laid out at once and filled in any order.

    Args:
        folder: where they go; an `atomic_folder`'s partial one.
        plan: every tensor, in the order of the files.
        max_shard_bytes: a shard is closed before it would grow past this; one tensor may be larger.

    Example:
        >>> with CheckpointWriter(folder, [PlannedTensor(name="w", dtype="F32", shape=(2,))]) as writer:
        ...     writer.write("w", np.zeros(2, np.float32).view(np.uint8))
    """

    def __init__(self, folder: Path, plan: Sequence[PlannedTensor], max_shard_bytes: int = 5_000_000_000) -> None:
        self.folder = folder
        self._slots: dict[str, TensorInfo] = {}
        self._open: dict[Path, BinaryIO] = {}
        shards = _split(plan, max_shard_bytes)
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            self._lay_out(folder / name, shard)
        if len(shards) > 1:
            weight_map = {name: slot.file.name for name, slot in self._slots.items()}
            total = sum(tensor.size_bytes for tensor in plan)
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def write(self, name: str, raw: npt.NDArray[np.uint8]) -> None:
        """Put the tensor's bytes in their place."""
        slot = self._slots[name]
        if raw.nbytes != slot.size_bytes:
            raise ValueError(f"{name}: {raw.nbytes} bytes for a slot of {slot.size_bytes}")
        put(self._open[slot.file], slot.start, raw.reshape(-1).data)

    def copy(self, name: str, source: TensorInfo) -> None:
        """Put a tensor of another checkpoint, of the same dtype, in its place: by the kernel, where it can."""
        slot = self._slots[name]
        if source.size_bytes != slot.size_bytes:
            raise ValueError(f"{name}: {source.size_bytes} bytes for a slot of {slot.size_bytes}")
        stream = self._open[slot.file]
        with source.file.open("rb") as original, naming(slot.file):
            done = _copy_range(original, stream, source, slot)
            original.seek(source.start + done)
            while done < slot.size_bytes:
                piece = original.read(min(_PIECE_BYTES, slot.size_bytes - done))
                if not piece:
                    raise TsconvertError(f"{source.file}: became shorter while it was read; start again")
                put(stream, slot.start + done, memoryview(piece))
                done += len(piece)

    def flush(self) -> None:
        """All that was written so far is on the disk when this returns."""
        for stream in self._open.values():
            os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Flush and close the shards, also after an error: a resumed run goes on with them."""
        try:
            self.flush()
        finally:
            for stream in self._open.values():
                stream.close()

    def _lay_out(self, file: Path, shard: Sequence[PlannedTensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in shard:
            end = offset + tensor.size_bytes
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        base = 8 + len(text)
        for tensor in shard:
            start = header[tensor.name]["data_offsets"][0]
            slot = TensorInfo(tensor.name, file, tensor.dtype, tensor.shape, base + start, tensor.size_bytes)
            self._slots[tensor.name] = slot
        stream = self._open[file] = file.open("r+b" if file.exists() else "w+b", buffering=0)
        put(stream, 0, memoryview(len(text).to_bytes(8, "little") + text))
        reserve(stream, base + offset)


def _copy_range(original: BinaryIO, stream: BinaryIO, source: TensorInfo, slot: TensorInfo) -> int:
    """Copy within the kernel (copy_file_range); how many bytes it took, fewer than asked where it cannot."""
    done = 0
    try:
        while done < slot.size_bytes:
            count = os.copy_file_range(
                original.fileno(), stream.fileno(), slot.size_bytes - done, source.start + done, slot.start + done
            )
            if not count:
                break
            done += count
    except (AttributeError, OSError) as error:  # not on macOS; not between all file systems
        if getattr(error, "errno", None) in (*FULL, errno.EFBIG, errno.EIO):
            raise
    return done


def plan_like(infos: Sequence[TensorInfo], dtype: str | None = None) -> list[PlannedTensor]:
    """The plan that holds the same tensors, in ``dtype`` if given."""
    plan = [PlannedTensor(name=info.name, dtype=info.dtype, shape=info.shape) for info in infos]
    return [replace(tensor, dtype=dtype) for tensor in plan] if dtype else plan


def _split(plan: Sequence[PlannedTensor], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in plan:
        if shards[-1] and size + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return shards


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
