"""A limit on addresses (ulimit -v) too low for the libraries: said at the start.

Where it is reached native code ends the process without a word: thread-local data, stacks and compilers have no way to
report it. Memory that is merely short ends in a MemoryError, which system_errors.py puts into words.
"""

import os
import sys
from pathlib import Path

from .errors import TsconvertError

_TORCH_BYTES, _OTHERS_BYTES = 3 << 30, 1 << 30  # of addresses, measured: 2.6 and 0.8 GB, most of them never touched
_WORK_BYTES = 512 << 20
_THREAD_BYTES = 80 << 20  # a stack and an arena of malloc's


def require_addresses(*, torch: bool) -> None:
    """Stop where the limit leaves too little room.

    Args:
        torch: the command needs PyTorch.

    Raises:
        TsconvertError: names the limit, what it leaves and what is needed.
    """
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    libraries = 0 if "torch" in sys.modules else _TORCH_BYTES if torch else _OTHERS_BYTES
    need = libraries + _WORK_BYTES + _THREAD_BYTES * (os.cpu_count() or 1)
    left = limit - _used_bytes()
    if left < need:
        raise TsconvertError(
            f"the limit on this process's addresses (ulimit -v) leaves {max(0, left):,} bytes and {need:,} are needed;"
            " raise it"
        )


def _used_bytes() -> int:
    """Addresses that the process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
