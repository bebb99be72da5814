"""Refuse to start under an address-space limit (ulimit -v) that is too low for the libraries.

When native code reaches the limit, the process ends without a message: thread-local data, stacks and compilers cannot
report it. Memory that merely runs out raises MemoryError, which system_errors.py explains.
"""

import os
import sys

from ..errors import TsconvertError

_TORCH_BYTES, _OTHERS_BYTES = 3 << 30, 1 << 30  # of addresses, measured: 2.6 and 0.8 GB, most of them never touched
_WORK_BYTES = 512 << 20
_THREAD_BYTES = 80 << 20  # a stack and an arena of malloc's


def require_addresses(*, torch: bool) -> None:
    """Check the limit on this process's address space.

    Args:
        torch: the command needs PyTorch.

    Raises:
        TsconvertError: the limit leaves less than is needed.
    """
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    libraries = 0 if "torch" in sys.modules else _TORCH_BYTES if torch else _OTHERS_BYTES
    need = libraries + _WORK_BYTES + _THREAD_BYTES * (os.cpu_count() or 1)
    import psutil

    left = limit - psutil.Process().memory_info().vms
    if left < need:
        raise TsconvertError(
            f"the limit on this process's addresses (ulimit -v) leaves {max(0, left):,} bytes and {need:,} are needed;"
            " raise it"
        )
