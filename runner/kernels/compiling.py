"""How the runner's functions are compiled: without the interpreter lock, once, and all that one calls with it.

Numba by itself makes a module of its own of every function, optimises it, makes machine code of it, with entries for
the interpreter and for C, and then does all that again in every caller. Of a step of eighty functions that is half a
minute; as one module it is a few seconds.
"""

import functools
from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import compiler
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.core.typing import make_concrete_template

_SUM = {"reassoc", "contract", "nsz"}
_INT64 = types.int64


class _Module:
    """What is being built: a library of Numba's, and which functions are in it for which types."""

    def __init__(self, name: str) -> None:
        self.library = cpu_target.target_context.codegen().create_library(name)
        self.library.enable_object_caching()
        self.found: dict[tuple[Any, ...], tuple[object, Any]] = {}

    def add(self, part: Any, args: tuple[Any, ...]) -> tuple[object, Any]:
        """Compile a function into it, once; returns a name for it and Numba's result.

        Args:
            part: what Numba compiles it with: a `_FunctionCompiler`.
        """
        if (part, args) not in self.found:
            flags = compiler.Flags()
            part.targetdescr.options.parse_as_flags(flags, part.targetoptions)
            flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            name, made = object(), _compile(part, args, None, flags, self)
            cpu_target.target_context.insert_user_function(name, made.fndesc)
            self.found[part, args] = name, made
        return self.found[part, args]

    def hide(self) -> None:
        """Let what has been inlined everywhere be left out."""
        for _, made in self.found.values():
            self.library._final_module.get_function(made.fndesc.llvm_func_name).linkage = "internal"


_building: list[_Module] = []  # the last one; Numba's global lock is held meanwhile


def _compile(part: Any, args: tuple[Any, ...], returned: Any, flags: Any, module: _Module) -> Any:
    context = cpu_target.typing_context, cpu_target.target_context
    return compiler.compile_extra(
        *context, part.py_func, args=args, return_type=returned, flags=flags, locals={}, library=module.library
    )


class Compiled:
    """A function for compiled code. From Python it can be called too, which compiles it once more, by itself."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._function, self._options = function, options
        self._inner = _once(njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function))
        self._numba_type_ = types.Dispatcher(self._inner)  # holds no reference

    @functools.cached_property
    def _from_python(self) -> Any:
        return njit(nogil=True, **self._options)(self._function)

    def __call__(self, *args: Any) -> Any:
        """What the function says."""
        return self._from_python(*args)


def compiled(function: Callable[..., Any]) -> Any:
    """For functions that compiled code calls; their numbers are int64 and float32."""
    return Compiled(function)


def compiled_sum(function: Callable[..., Any]) -> Any:
    """The same, and sums may be reordered, which lets LLVM vectorise them; NaN and infinity keep their meaning."""
    return Compiled(function, fastmath=_SUM)


def _once(dispatcher: Any) -> Any:
    """Numba compiles a function anew for each constant that it is called with; that would be hundreds of times."""
    template, overload = dispatcher.get_call_template, dispatcher.get_overload
    part = dispatcher._compiler

    def get_call_template(args: Any, kws: Any) -> Any:
        pysig, folded = part.fold_argument_types(tuple(types.unliteral(each) for each in args), kws)
        if not _building:
            return template(folded, {})
        _, made = _building[-1].add(part, tuple(folded))
        return make_concrete_template(part.py_func.__name__, part.py_func, [made.signature]), pysig, folded, {}

    def get_overload(args: Any) -> Any:
        return _building[-1].add(part, tuple(args))[0] if _building else overload(args)

    dispatcher.get_call_template, dispatcher.get_overload = get_call_template, get_overload
    return dispatcher


class _Whole(CFunc):
    """A C function with all that it calls."""

    _compiler: Any
    _sig: Any

    def _compile_uncached(self) -> Any:
        module, part = _Module(self.__qualname__), self._compiler
        flags = compiler.Flags()
        part.targetdescr.options.parse_as_flags(flags, part.targetoptions)
        _building.append(module)
        try:
            made = _compile(part, self._sig.args, self._sig.return_type, part._customize_flags(flags), module)
        finally:
            _building.pop()
        module.hide()
        return made


def whole(arguments: int, *, cache: bool) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function of so many int64 to int64, with all that it calls; its ``address`` is a C function's.

    Args:
        cache: keep the result on disk.

    Raises:
        RuntimeError: there is no folder for that.
    """
    signature = _INT64(*[_INT64] * arguments)

    def wrapper(function: Callable[..., Any]) -> Any:
        made = _Whole(function, (signature.args, signature.return_type), {}, {})
        if cache:
            made.enable_caching()
        made.compile()
        return made

    return wrapper
