"""Errors of the operating system (disk, memory, permissions) as one sentence: what happened, to which file, what to do.

Libraries report them in forms of their own: a full disk is Python's OSError, safetensors' `os error 28`, torch's "file
write failed". All of them are recognized here.
"""

import errno
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

TO_DO = {
    errno.ENOSPC: "the disk is full; make room or choose another --out",
    errno.EDQUOT: "the disk quota is used up; make room or choose another --out",
    errno.EFBIG: "a file may not grow so large here; raise the limit (ulimit -f) or write to another file system",
    errno.EIO: "the disk reports an error; look for its reason (dmesg) before anything else is written there",
    errno.EROFS: "the file system is read-only; choose another --out",
    errno.EACCES: "permission denied; choose another place or have the permissions changed",
    errno.EPERM: "permission denied; choose another place or have the permissions changed",
    errno.ENOENT: "no such file or folder; look at the path",
    errno.EISDIR: "is a folder, where a file is needed; look at the path",
    errno.ENOTDIR: "a part of this path is a file, where a folder is needed; look at the path",
    errno.EEXIST: "exists already; choose another --out or remove it first",
    errno.ENOTEMPTY: "exists already; choose another --out or remove it first",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; end other programs",
}
_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DEEP = (*_ROOM, errno.EIO)  # what counts where another error came of it, too
_SMALLER = ("--tokens", "--batch-tokens", "--micro-tokens", "--context", "--ctx", "--threads")
_CODE = re.compile(r"\((?:os error|errno) (\d+)\)|\[Errno (\d+)\]")
_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|cannot allocate memory|out of memory|bad_alloc|can't start new thread"
    r"|failed to map segment|resource temporarily unavailable|could not create a (?:primitive|memory)",  # oneDNN's last
    re.IGNORECASE,
)
_TORCH_FILE = re.compile(r"PytorchStreamWriter failed|file write failed|unexpected pos \d+ vs \d+")


def in_words(error: BaseException, options: Collection[str] = ()) -> str | None:
    """One sentence on an error of the system; None if the error is not the system's but a mistake of the program.

    Args:
        options: the command's options; those that reduce memory are named.

    Example:
        >>> in_words(OSError(28, "No space left on device", "out.gguf"))
        'out.gguf: the disk is full; make room or choose another --out'
    """
    for each in _chain(error):
        if each is not error and not _is_memory(each) and getattr(each, "errno", None) not in _DEEP:
            continue
        if _is_memory(each):
            smaller = [option for option in _SMALLER if option in options]
            less = f" or give smaller {', '.join(smaller)}" if smaller else ""
            return f"not enough memory; end other programs{less}"
        if isinstance(each, OSError) or _number(each):
            name = f"{each.filename}: " if isinstance(each, OSError) and each.filename else ""
            return name + _to_do(_number(each), each)
    return None


def no_room(error: BaseException) -> bool:
    """Whether an error comes from a full disk, or from a limit on file sizes."""
    return any(_number(each) in _ROOM for each in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, which may say more."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        at = at.__cause__ or at.__context__
    yield from seen


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    native = isinstance(error, RuntimeError | ImportError | SystemError) or type(error).__name__ == "SafetensorError"
    return native and bool(_MEMORY.search(str(error)))


def _number(error: BaseException) -> int | None:
    """The errno of an error; None if it is not the system's."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, RuntimeError) and _TORCH_FILE.search(str(error)):
        return errno.ENOSPC
    found = _CODE.search(str(error)) if isinstance(error, Exception) else None
    return int(found[1] or found[2]) if found else None


def _to_do(number: int | None, error: BaseException) -> str:
    if number in TO_DO:
        return TO_DO[number]
    said = (os.strerror(number) if number else str(error) or type(error).__name__).rstrip(".")
    return f"{said[:1].lower()}{said[1:]}; this is the system's answer, try again or look for its reason"


def leave_stdout() -> None:
    """Discard output that could not be printed: Python would try again at exit, and complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
