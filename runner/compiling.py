"""How the runner's functions are compiled: without the interpreter lock, and once, whatever constants they get."""

from collections.abc import Callable
from typing import Any

from numba import njit, types

_SUM = {"reassoc", "contract", "nsz"}


def compiled(function: Callable[..., Any]) -> Any:
    """For functions that compiled code calls; their numbers are int64 and float32."""
    return _once(njit(nogil=True)(function))


def compiled_sum(function: Callable[..., Any]) -> Any:
    """The same, and sums may be reordered, which lets LLVM vectorise them; NaN and infinity keep their meaning."""
    return _once(njit(nogil=True, fastmath=_SUM)(function))


def _once(dispatcher: Any) -> Any:
    """Numba compiles a function anew for each constant that it is called with; that would be hundreds of times."""
    template = dispatcher.get_call_template

    def plain(args: Any, kws: Any) -> Any:
        return template(tuple(types.unliteral(each) for each in args), kws)

    dispatcher.get_call_template = plain
    return dispatcher
