"""A reserved file that several threads fill at their own offsets, past the page cache where the file is large.

Through the page cache a file of several GB pushes out the checkpoint that is being read, and each byte costs the kernel
a copy. O_DIRECT takes whole pages from aligned memory only, and tensors begin anywhere: so of each piece whole pages go
past the cache, and its two ends, which share a page with their neighbours, through it.
"""

import errno
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from ...common.files import naming, put, reserve

Bytes = npt.NDArray[np.uint8]
PAGE = 4096
LARGE_BYTES = 1 << 30  # smaller files stay in the cache, where the next reader finds them
_WORTH_BYTES = 1 << 16
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class ParallelFile:
    """The file behind ``stream``, given its full size at once: a full disk shows before the work.

    Args:
        stream: an empty file on a disk; its position means nothing afterwards.
        size_bytes: that it is going to have.

    Raises:
        TsconvertError: the disk is full.
    """

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        reserve(stream, size_bytes)
        self._stream, self._direct = stream, -1
        self._mine, self._lock = threading.local(), threading.Lock()
        if _DIRECT and size_bytes >= LARGE_BYTES:
            try:
                self._direct = os.open(stream.name, os.O_WRONLY | _DIRECT)
            except OSError:  # tmpfs and some network file systems have none
                self._direct = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._direct >= 0:
            os.close(self._direct)
            self._direct = -1

    def room(self, offset: int, size: int) -> Bytes:
        """Memory of this thread for ``size`` bytes that belong at ``offset``, lying in pages as they will in the file.

        The next call gives the same memory.
        """
        whole: Bytes = getattr(self._mine, "room", np.empty(0, np.uint8))
        if whole.size < size + 2 * PAGE:
            whole = self._mine.room = np.empty(size + 2 * PAGE, np.uint8)
        start = (offset - whole.ctypes.data) % PAGE
        return whole[start : start + size]

    def write(self, offset: int, content: npt.NDArray[Any] | bytes) -> None:
        """Put bytes at an offset, from any thread; fastest from `room`."""
        left = np.frombuffer(content, np.uint8) if isinstance(content, bytes) else content.reshape(-1).view(np.uint8)
        head = min(-offset % PAGE, left.size)
        whole = (left.size - head) // PAGE * PAGE
        if self._direct < 0 or whole < _WORTH_BYTES or (left.ctypes.data - offset) % PAGE:
            self._through_cache(offset, left)
            return
        self._through_cache(offset, left[:head])
        done = head + self._past_cache(offset + head, left[head : head + whole])
        self._through_cache(offset + done, left[done:])

    def _past_cache(self, offset: int, content: Bytes) -> int:
        """How many of the whole pages were taken; the others are for the cache."""
        done = 0
        while done < content.size:
            try:
                with naming(Path(self._stream.name)):
                    count = os.pwrite(self._direct, content[done:].data, offset + done)
            except OSError as error:
                if error.errno != errno.EINVAL:  # this file system wants larger units
                    raise
                break
            done += count
            if count % PAGE:
                break
        return done

    def _through_cache(self, offset: int, content: Bytes) -> None:
        if content.size:
            with self._lock:  # one at a time: Linux lets those that wait for the file spin
                put(self._stream, offset, memoryview(content.data))
