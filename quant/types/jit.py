"""Numba's decorator as the encoders use it: no Python lock is held while the code runs."""

from collections.abc import Callable
from typing import Any

from numba import njit

inlined: Any = njit(nogil=True, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Part of each function that calls it, as if written there."""
compiled: Any = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Called by compiled code only."""


def cached(function: Callable[..., Any]) -> Any:
    """Compile on the first call, and keep the machine code on disk if Numba finds a folder that it may write to."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return njit(nogil=True)(function)
