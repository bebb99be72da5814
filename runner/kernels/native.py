"""What compiled code needs and Numba does not have: calls by address, atomics, 16-bit floats, the pause instruction.

Addresses are int64 that arrive at run time, so that compiled code can be cached: nothing here bakes one in.
"""

import ctypes
import platform
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .simd import Emit

_I16, _I32, _I64, _HALF, _FLOAT = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.HalfType(), ir.FloatType()
_BYTES = ir.IntType(8).as_pointer()
_VOID = ir.VoidType()


def yield_address() -> int:
    """The address of the C function that lets another thread run: sched_yield, or SwitchToThread on Windows."""
    if sys.platform == "win32":
        function: Any = ctypes.windll.kernel32.SwitchToThread
    else:
        function = ctypes.CDLL(None).sched_yield
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _element(builder: Any, address: Any, index: Any, kind: Any) -> Any:
    return builder.gep(_pointer(builder, address, kind), [index])


@intrinsic
def call_vec_dot(typingctx: Any, function: Any, n: Any, out: Any, row: Any, input_row: Any) -> Any:  # noqa: ARG001
    """ggml's vec_dot at address ``function`` over rows of ``n`` values; writes one float at ``out``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(_VOID, [_I32, _BYTES, _I64, _BYTES, _I64, _BYTES, _I64, _I32])
        zero, one = ir.Constant(_I64, 0), ir.Constant(_I32, 1)
        out_p, row_p, input_p = (builder.inttoptr(arg, _BYTES) for arg in args[2:])
        count = builder.trunc(args[1], _I32)
        builder.call(_pointer(builder, args[0], kind), [count, out_p, zero, row_p, zero, input_p, zero, one])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def call_row(typingctx: Any, function: Any, source: Any, target: Any, n: Any) -> Any:  # noqa: ARG001
    """ggml's to_float or from_float at address ``function``, over ``n`` values from ``source`` to ``target``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(_VOID, [_BYTES, _BYTES, _I64])
        source_p, target_p = (builder.inttoptr(arg, _BYTES) for arg in args[1:3])
        builder.call(_pointer(builder, args[0], kind), [source_p, target_p, args[3]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def _calling(count: int) -> Any:
    """A call of a compiled function at an address (products.py) with ``count`` int64 arguments."""

    @intrinsic
    def call(typingctx: Any, function: Any, arguments: Any) -> Any:  # noqa: ARG001
        """The function at an address with a tuple of whole numbers."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(_I64, [_I64] * count)
            values = [
                context.cast(builder, builder.extract_value(args[1], i), each, types.int64)
                for i, each in enumerate(signature.args[1])
            ]
            return builder.call(_pointer(builder, args[0], kind), values)

        return types.int64(types.int64, arguments), codegen

    return call


call_products, call_add = _calling(15), _calling(11)


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:  # noqa: ARG001
    """Ask for the cache line at ``address``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        Emit(builder, "").prefetch(args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def call_yield(typingctx: Any, function: Any) -> Any:  # noqa: ARG001
    """The function at `yield_address`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        builder.call(_pointer(builder, args[0], ir.FunctionType(_I32, [])), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def pause(typingctx: Any) -> Any:  # noqa: ARG001
    """Tell the core that this is a spinning loop: x86's pause, ARM's yield, elsewhere nothing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(_VOID, [])), [])
        elif machine in ("aarch64", "arm64"):
            hint = builder.module.declare_intrinsic("llvm.aarch64.hint", (), ir.FunctionType(_VOID, [_I32]))
            builder.call(hint, [ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
    """Add ``value`` to the int64 at ``address``; returns what stood there before. Orders memory both ways."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.atomic_rmw("add", _pointer(builder, args[0], _I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:  # noqa: ARG001
    """The int64 at ``address``; what other threads wrote before storing it is visible afterwards."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.load_atomic(_pointer(builder, args[0], _I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def load_i64(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Element ``index`` of the int64 row at ``address``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.load(_element(builder, args[0], args[1], _I64))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_f32(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Float ``index`` of the float32 row at ``address``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.load(_element(builder, args[0], args[1], _FLOAT))

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def load_f16(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Float ``index`` of the float16 row at ``address``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.fpext(builder.load(_element(builder, args[0], args[1], _HALF)), _FLOAT)

    return types.float32(types.int64, types.int64), codegen


@intrinsic
def load_bf16(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Float ``index`` of the bfloat16 row at ``address``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        bits = builder.zext(builder.load(_element(builder, args[0], args[1], _I16)), _I32)
        return builder.bitcast(builder.shl(bits, ir.Constant(_I32, 16)), _FLOAT)

    return types.float32(types.int64, types.int64), codegen


def _storing(kind: Any, number: Any) -> Any:
    @intrinsic
    def store(typingctx: Any, address: Any, index: Any, value: Any) -> Any:  # noqa: ARG001
        """Write element ``index`` of the row at ``address``."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cast = context.cast(builder, args[2], signature.args[2], number)
            if kind == _HALF:
                cast = builder.fptrunc(cast, _HALF)
            builder.store(cast, _element(builder, args[0], args[1], kind))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, value), codegen

    return store


store_f32, store_f16 = _storing(_FLOAT, types.float32), _storing(_HALF, types.float32)
store_i32, store_i64 = _storing(_I32, types.int32), _storing(_I64, types.int64)


@intrinsic
def load_i32(typingctx: Any, address: Any, index: Any) -> Any:  # noqa: ARG001
    """Element ``index`` of the int32 row at ``address``, as int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        return builder.sext(builder.load(_element(builder, args[0], args[1], _I32)), _I64)

    return types.int64(types.int64, types.int64), codegen
