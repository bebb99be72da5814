"""Only one run at a time may write an output: the lock is on the partial file or folder itself, so none is left behind.

flock(2) belongs to the open file, and the kernel drops it when the process ends, however it ends.
"""

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import TsconvertError

if sys.platform != "win32":  # which has no flock: runs are not told apart there
    import fcntl

_Key = tuple[int, int]
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_held: dict[_Key, list[int]] = {}  # inode -> its descriptor, and how often this process has locked it
_guard = threading.Lock()


@contextmanager
def locked(path: Path, out: Path, *, folder: bool = False) -> Iterator[None]:
    """Hold the lock on ``path``, which is made if it is not there.

    The locks of one process nest. At the end the file or empty folder is removed, and empty folders that were made for
    it; what was renamed meanwhile stays.

    Args:
        path: where ``out`` is written first, usually `OUT.partial`.
        out: the output, for the error.
        folder: ``path`` is a folder.

    Raises:
        TsconvertError: another process writes ``out``.

    Example:
        >>> with locked(Path("out.partial"), Path("out"), folder=True):
        ...     Path("out.partial").rename("out")
    """
    made = [parent for parent in path.parents if not parent.exists()]
    key = _acquire(path, out, folder)
    try:
        yield
    finally:
        _release(key, path, folder)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


def _acquire(path: Path, out: Path, folder: bool) -> _Key:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        if folder:
            path.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if not folder:
                raise
            continue  # its owner has just renamed it
        key = _key(os.fstat(descriptor))
        with _guard:
            if key in _held:
                os.close(descriptor)
                _held[key][1] += 1
                return key
            _lock(descriptor, out)
            if _is_still(path, key):  # else its owner renamed it before the lock was ours
                _held[key] = [descriptor, 1]
                return key
            os.close(descriptor)


def _release(key: _Key, path: Path, folder: bool) -> None:
    with _guard:
        held = _held[key]
        held[1] -= 1
        if held[1]:
            return
        if _is_still(path, key):
            with suppress(OSError):
                path.rmdir() if folder else path.unlink()
        del _held[key]
        os.close(held[0])


def _lock(descriptor: int, out: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            return  # a file system without locks
        holder = _holder(descriptor)
        os.close(descriptor)
        raise TsconvertError(
            f"{out}: {holder} is writing it; wait until that is done, or choose another name"
        ) from None


def _holder(descriptor: int) -> str:
    """The process that has the lock, in words; Linux lists it in /proc/locks, by device and inode."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1:2] == ["FLOCK"] and words[5:6] == [place] and int(words[4]) > 0:
                return f"process {words[4]}"
    return "another process"


def _is_still(path: Path, key: _Key) -> bool:
    try:
        return _key(path.stat()) == key
    except FileNotFoundError:
        return False


def _key(found: os.stat_result) -> _Key:
    return found.st_dev, found.st_ino
