"""Functions of a step as C functions: each is compiled once, by itself, and called by the others by its address.

Numba by itself compiles a function into a library, and links and optimises that again in every caller; of a step of
sixty functions that is half a minute. Here a function is a `numba.cfunc` of whole numbers, floats and records, and a
call is one through the table of addresses in the step's parameters, which every function has as its first argument.
"""

import ctypes
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc
from numba.extending import register_jitable

from .parameters import FUNCTIONS, PARAMETERS, numba_type, offset_of
from .simd.emit import I64, Emit, register

SUM = {"reassoc", "contract", "nsz"}
_C: dict[Any, Any] = {int: ctypes.c_int64, float: ctypes.c_float, np.float32: ctypes.c_float, None: None}
_known: dict[str, "Compiled"] = {}


class Compiled:
    """A C function, made of a Python function at its first use.

    Arguments and result are as annotated: int (64 bits), float (32 bits), nothing, or a record (parameters.py).
    Compiled code calls it through the table of its first argument; Python calls the same machine code.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        hints = inspect.get_annotations(function)
        self.__name__, self.__doc__ = function.__name__, function.__doc__
        self._function, self._options = function, options
        self._returns, self._takes = hints.pop("return"), list(hints.values())
        self.signature = signature_of(function)
        _known[self.__name__] = self
        register(self, self.signature, self._call)

    @functools.cached_property
    def _made(self) -> Any:
        return compile_c(self._function, self.signature, **self._options)

    @property
    def address(self) -> int:
        """Where its machine code begins, in this process."""
        return int(self._made.address)

    @functools.cached_property
    def _from_python(self) -> Any:
        arguments = (_C.get(hint, ctypes.c_void_p) for hint in self._takes)
        return ctypes.CFUNCTYPE(_C[self._returns], *arguments)(self.address)

    def __call__(self, *args: Any) -> Any:
        """Run it, without the interpreter lock. Records are given by their address."""
        return self._from_python(*args)

    def _call(self, context: Any, e: Emit, *args: Any) -> Any:
        kind = ir.FunctionType(context.get_value_type(self.signature.return_type), [value.type for value in args])
        table = e.load(I64, e.b.ptrtoint(args[0], I64), offset_of(PARAMETERS, "functions"))
        function = e.load(I64, table, offset_of(FUNCTIONS, self.__name__))
        return e.b.call(e.b.inttoptr(function, kind.as_pointer()), args)


def signature_of(function: Callable[..., Any]) -> Any:
    """A function's signature in Numba's types, of its annotations."""
    hints = inspect.get_annotations(function)
    return numba_type(hints.pop("return"))(*map(numba_type, hints.values()))


def compile_c(function: Callable[..., Any], signature: Any, **options: Any) -> Any:
    """A C function, from Numba's cache on disk where there is one.

    Numba keeps one entry a signature. All of ours begin with a record that has the hash of all sources in a field's
    name, so that code of other sources is never found.
    """
    options |= {"error_model": "numpy"}
    try:
        return cfunc(signature, cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder that it may write to
        return cfunc(signature, **options)(function)


def compiled(function: Callable[..., Any]) -> Any:
    """A C function of its own, for compiled code and for Python."""
    return Compiled(function)


def compiled_sum(function: Callable[..., Any]) -> Any:
    """The same, and sums may be reordered, which lets LLVM vectorise them; NaN and infinity keep their meaning."""
    return Compiled(function, fastmath=SUM)


def inlined(function: Callable[..., Any]) -> Any:
    """A few lines that become part of each function that calls them."""
    return register_jitable(inline="always")(function)


def function_table() -> Any:
    """The addresses of all functions: what `parameters.functions` points to."""
    table = np.zeros((), FUNCTIONS)
    for name in FUNCTIONS.names or ():
        table[name] = _known[name].address
    return table
