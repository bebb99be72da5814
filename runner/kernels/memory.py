"""What compiled code needs and Numba does not have: memory and calls by address, atomics, the pause instruction.

Addresses are int64 that arrive at run time, so that compiled code can be cached: nothing here bakes one in.
"""

import ctypes
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types

from .simd.emit import FLOAT, HALF, I8, I16, I32, I64, Emit, emitted

_BYTES, _VOID = I8.as_pointer(), ir.VoidType()
_int, _float = types.int64, types.float32


def yield_address() -> int:
    """The address of the C function that lets another thread run: sched_yield, or SwitchToThread on Windows."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _function(e: Emit, address: Any, returns: Any, *takes: Any) -> Any:
    return e.b.inttoptr(address, ir.FunctionType(returns, takes).as_pointer())


@emitted(types.void, _int, _int, _int, _int, _int)
def call_vec_dot(e: Emit, function: Any, n: Any, out: Any, row: Any, input_row: Any) -> None:
    """ggml's vec_dot at address ``function`` over rows of ``n`` values; writes one float at ``out``."""
    out_p, row_p, input_p = (e.b.inttoptr(address, _BYTES) for address in (out, row, input_row))
    zero, one = ir.Constant(I64, 0), ir.Constant(I32, 1)
    called = _function(e, function, _VOID, I32, _BYTES, I64, _BYTES, I64, _BYTES, I64, I32)
    e.b.call(called, [e.b.trunc(n, I32), out_p, zero, row_p, zero, input_p, zero, one])


@emitted(types.void, _int, _int, _int, _int)
def call_row(e: Emit, function: Any, source: Any, target: Any, n: Any) -> None:
    """ggml's to_float or from_float at address ``function``, over ``n`` values from ``source`` to ``target``."""
    pointers = [e.b.inttoptr(address, _BYTES) for address in (source, target)]
    e.b.call(_function(e, function, _VOID, _BYTES, _BYTES, I64), [*pointers, n])


@emitted(types.void, _int)
def call_yield(e: Emit, function: Any) -> None:
    """The function at `yield_address`."""
    e.b.call(_function(e, function, I32), [])


@emitted(types.void)
def pause(e: Emit) -> None:
    """Tell the core that this is a spinning loop: x86's pause, ARM's yield, elsewhere nothing."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        e.call("llvm.x86.sse2.pause", _VOID)
    elif machine in ("aarch64", "arm64"):
        e.call("llvm.aarch64.hint", _VOID, ir.Constant(I32, 1))


@emitted(_int, _int, _int)
def atomic_add(e: Emit, address: Any, value: Any) -> Any:
    """Add ``value`` to the int64 at ``address``; returns what stood there before. Orders memory both ways."""
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), value, "seq_cst")


@emitted(_int, _int, _int, _int)
def atomic_replace(e: Emit, address: Any, old: Any, new: Any) -> Any:
    """Put ``new`` into the int64 at ``address`` if ``old`` is there; returns 1 if it was. Orders memory both ways."""
    place = e.b.inttoptr(address, I64.as_pointer())
    return e.b.zext(e.b.extract_value(e.b.cmpxchg(place, old, new, "seq_cst", "seq_cst"), 1), I64)


@emitted(_int, _int)
def atomic_load(e: Emit, address: Any) -> Any:
    """The int64 at ``address``; what other threads wrote before storing it is visible afterwards."""
    return e.b.load_atomic(e.b.inttoptr(address, I64.as_pointer()), "acquire", 8)


@emitted(_int, _int, _int)
def load_i64(e: Emit, address: Any, index: Any) -> Any:
    """Element ``index`` of the int64 row at ``address``."""
    return e.b.load(e.at(I64, address, index))


@emitted(_int, _int, _int)
def load_i32(e: Emit, address: Any, index: Any) -> Any:
    """Element ``index`` of the int32 row at ``address``, as int64."""
    return e.b.sext(e.b.load(e.at(I32, address, index)), I64)


@emitted(_float, _int, _int)
def load_f32(e: Emit, address: Any, index: Any) -> Any:
    """Float ``index`` of the float32 row at ``address``."""
    return e.b.load(e.at(FLOAT, address, index))


@emitted(_float, _int, _int)
def load_f16(e: Emit, address: Any, index: Any) -> Any:
    """Float ``index`` of the float16 row at ``address``."""
    return e.b.fpext(e.b.load(e.at(HALF, address, index)), FLOAT)


@emitted(_float, _int, _int)
def load_bf16(e: Emit, address: Any, index: Any) -> Any:
    """Float ``index`` of the bfloat16 row at ``address``."""
    bits = e.b.zext(e.b.load(e.at(I16, address, index)), I32)
    return e.b.bitcast(e.b.shl(bits, ir.Constant(I32, 16)), FLOAT)


@emitted(types.void, _int, _int, _int)
def store_i64(e: Emit, address: Any, index: Any, value: Any) -> None:
    """Write element ``index`` of the int64 row at ``address``."""
    e.b.store(value, e.at(I64, address, index))


@emitted(types.void, _int, _int, _int)
def store_i32(e: Emit, address: Any, index: Any, value: Any) -> None:
    """Write element ``index`` of the int32 row at ``address``."""
    e.b.store(e.b.trunc(value, I32), e.at(I32, address, index))


@emitted(types.void, _int, _int, _float)
def store_f32(e: Emit, address: Any, index: Any, value: Any) -> None:
    """Write float ``index`` of the float32 row at ``address``."""
    e.b.store(value, e.at(FLOAT, address, index))


@emitted(types.void, _int, _int, _float)
def store_f16(e: Emit, address: Any, index: Any, value: Any) -> None:
    """Write float ``index`` of the float16 row at ``address``."""
    e.b.store(e.b.fptrunc(value, HALF), e.at(HALF, address, index))
