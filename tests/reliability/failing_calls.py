"""System calls that fail with an error of choice, in this process and for good: by seccomp, so native code sees it too.

Linux on x86-64 only. The filter is a BPF program (linux/filter.h, linux/seccomp.h).
"""

import ctypes
import platform
import struct
import sys

NUMBERS = {
    "write": 1,
    "pwrite64": 18,
    "fsync": 74,
    "rename": 82,
    "fallocate": 285,
    "copy_file_range": 326,
}
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _FIRST = 0, 16  # offsets in seccomp_data: the call's number, the low half of its first argument
_ERRNO, _ALLOW = 0x0005_0000, 0x7FFF_0000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def fail_calls(calls: dict[str, int], lowest: int = 3) -> None:
    """From now on ``calls`` (name -> errno) fail where their first argument, a descriptor, is ``lowest`` or more.

    `rename` has no descriptor and fails always.
    """
    lines: list[bytes] = []
    for name, error in calls.items():
        least = 0 if name == "rename" else lowest
        lines += [
            _line(_LOAD, 0, 0, _NUMBER), _line(_EQUAL, 0, 3, NUMBERS[name]), _line(_LOAD, 0, 0, _FIRST),
            _line(_AT_LEAST, 0, 1, least), _line(_RETURN, 0, 0, _ERRNO | error),
        ]  # fmt: skip
    lines.append(_line(_RETURN, 0, 0, _ALLOW))
    program = _Program(len(lines), b"".join(lines))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def _line(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
