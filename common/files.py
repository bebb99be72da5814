"""Writing files and folders so that a crash never leaves half of one under its final name."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

from .errors import TsconvertError
from .locks import locked

PARTIAL = ".partial"
FIRST_STAGE, SECOND_STAGE = ".local", ".full"
UNFINISHED = (PARTIAL, FIRST_STAGE, FIRST_STAGE + PARTIAL, SECOND_STAGE)
"""Endings of what a run writes beside its output until it has finished."""
FULL = (errno.ENOSPC, errno.EDQUOT)
_PIECE_BYTES = 1 << 24


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name when it is whole: `NAME.partial`, fsync, rename. After an error it is removed.

    Raises:
        TsconvertError: another process is writing it.
    """
    partial = path.with_name(path.name + PARTIAL)
    with locked(partial, path):
        with naming(path), partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    _sync_folder(path.parent)


@contextmanager
def reserved_name(out: Path) -> Iterator[None]:
    """Keep other processes from writing the file ``out`` while this one works on its content.

    Raises:
        TsconvertError: ``out`` exists, or another process is writing it.
    """
    refuse_existing(out)
    with locked(out.with_name(out.name + PARTIAL), out):
        refuse_existing(out)  # its writer may have finished meanwhile
        yield


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name ``path`` in errors about full disks and file size limits, in which the system names no file."""
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


def read_json_object(path: Path, advice: str = "download it again") -> dict[str, Any]:
    """The JSON object in a file; ``advice`` is what to do where there is none.

    Raises:
        TsconvertError: the file holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TsconvertError(f"{path}: not JSON ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise TsconvertError(f"{path}: not a JSON object; {advice}")
    return content


def refuse_existing(out: Path) -> None:
    """Refuse to overwrite an output: it may have cost days."""
    if out.exists():
        raise TsconvertError(f"{out}: exists already; choose another --out or remove it first")


def refuse_unfinished(*folders: Path) -> NoReturn:
    """Refuse to begin anew over what an earlier run left in ``folders``: it may have cost days, too."""
    holds, it = ("holds", "it") if len(folders) == 1 else ("hold", "them")
    named = ", ".join(map(str, folders))
    raise TsconvertError(f"{named}: {holds} an unfinished run; go on with --resume, or remove {it} to start again")


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
def atomic_folder(
    out: Path, *, resume: bool = False, unfinished: Callable[[Path], bool] | None = None, drop: Sequence[str] = ()
) -> Iterator[Path]:
    """A folder that gets its name only when everything in it is written.

    Args:
        resume: keep what an earlier run left in the partial folder.
        unfinished: whether a partial folder holds work that ``resume`` would go on from: without it that is refused.
        drop: patterns of files that are only there to resume from; removed in this order at the very end.

    Yields:
        `OUT.partial`, emptied unless ``resume``. It stays after an error, for `--resume`.

    Raises:
        TsconvertError: ``out`` exists, or another process is writing it, or an earlier run's work would be lost.
    """
    refuse_existing(out)
    partial = out.with_name(out.name + PARTIAL)
    with locked(partial, out, folder=True):
        refuse_existing(out)  # its writer may have finished meanwhile
        if not resume:
            if unfinished is not None and unfinished(partial):
                refuse_unfinished(partial)
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
    """Remove the contents of ``folder``; the folder itself, and a lock on it, stay."""
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
