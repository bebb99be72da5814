"""Q8_0 and Q4_0 straight from bfloat16 or float32, one block of 32 weights a vector; the same bits as ggml's.

ggml encodes 0.35 and 0.7 billion weights a second and core, which is slower than a disk. Each operation here is rounded
on its own, as in ggml's C (quantize_row_q8_0_ref, quantize_row_q4_0_ref in ggml-quants.c): nothing is reordered or
fused. Shape suffixes: R rows, C columns, B bytes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .jit import cached, compiled

BLOCK = 32
BLOCK_BYTES = {"Q8_0": 2 + BLOCK, "Q4_0": 2 + BLOCK // 2}
_OVERFLOW = 0x00200000  # float32 bits: up to here the inverse of a scale is infinite, and C leaves the levels open
_I8, _I16, _I32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_INTS, _FLOATS, _BYTES = ir.VectorType(_I32, BLOCK), ir.VectorType(_FLOAT, BLOCK), ir.VectorType(_I8, BLOCK)
_SIZE, _SIGN = 0x7FFFFFFF, -0x80000000
_BELOW_HALF = 0x3EFFFFFF  # the float before 0.5: added and cut off it rounds as C's roundf


def quantize(
    rows_RC: npt.NDArray[Any], type_name: str, out_RB: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8] | None:
    """Encode rows of finite weights, on the calling thread, which holds no lock meanwhile.

    Args:
        rows_RC: [rows, columns], contiguous: float32, or uint16 that are bfloat16. 32 divides the columns.
        type_name: Q8_0 or Q4_0.
        out_RB: contiguous memory for the result; None takes new memory.

    Returns:
        [rows, row bytes]; None where ggml must do it: a block's scale is so small that its inverse overflows.
    """
    rows, columns = rows_RC.shape
    out = np.empty((rows, columns // BLOCK * BLOCK_BYTES[type_name]), np.uint8) if out_RB is None else out_RB
    short, small = rows_RC.dtype.itemsize == 2, type_name == "Q4_0"
    odd = _encode(rows_RC.ctypes.data, rows_RC.size // BLOCK, out.reshape(-1), out.ctypes.data, short, small)
    return None if odd else out


def widen(raw: npt.NDArray[np.uint16], out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """bfloat16, contiguous, as float32 of the same shape in ``out``; returns it."""
    flat = raw.reshape(-1)
    whole = flat.size // BLOCK
    _widen(flat.ctypes.data, whole, out.ctypes.data)
    out.reshape(-1).view(np.uint32)[whole * BLOCK :] = flat[whole * BLOCK :].astype(np.uint32) << 16
    return out


def half_bits(bits: Any) -> Any:
    """float32 bits as half-precision bits, to nearest even (GGML_FP32_TO_FP16)."""
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    lost = np.uint32(13)  # bits that the half has no room for
    whole = size - np.uint32(112 << 23)
    if size < np.uint32(113 << 23):  # subnormal as a half: the leading bit counts, and more are lost
        lost = min(np.uint32(126) - (size >> np.uint32(23)), np.uint32(30))
        whole = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        if size < np.uint32(0x00800000):
            whole = np.uint32(0)
    half = whole >> lost
    rest, tie = whole & ((np.uint32(1) << lost) - np.uint32(1)), np.uint32(1) << (lost - np.uint32(1))
    half += np.uint32(rest > tie) | (np.uint32(rest == tie) & half & np.uint32(1))
    return sign | min(half, np.uint32(0x7C00)) if size < np.uint32(0x7F800000) else sign | np.uint32(0x7C00)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * BLOCK))


def _all(value: int) -> Any:
    return ir.Constant(_INTS, [value] * BLOCK)


def _load_bits(builder: Any, address: Any, half_width: bool) -> Any:
    """The block at ``address`` as float32 bits, from bfloat16 or float32."""
    if not half_width:
        return builder.load(builder.inttoptr(address, _INTS.as_pointer()), align=1)
    kind = ir.VectorType(_I16, BLOCK)
    short = builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)
    return builder.shl(builder.zext(short, _INTS), _all(16))


def _largest(builder: Any, size: Any) -> Any:
    kind = ir.FunctionType(_I32, [_INTS])
    return builder.call(builder.module.declare_intrinsic(f"llvm.vector.reduce.umax.v{BLOCK}i32", (), kind), [size])


def _inverse(builder: Any, scale: Any) -> Any:
    zero = ir.Constant(_FLOAT, 0.0)
    return builder.select(builder.fcmp_ordered("==", scale, zero), zero, builder.fdiv(ir.Constant(_FLOAT, 1.0), scale))


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=1)


def _emit_q8_0(builder: Any, bits: Any, out: Any) -> Any:
    largest = builder.bitcast(_largest(builder, builder.and_(bits, _all(_SIZE))), _FLOAT)
    scale = builder.fdiv(largest, ir.Constant(_FLOAT, 127.0))
    scaled = builder.fmul(builder.bitcast(bits, _FLOATS), _splat(builder, _inverse(builder, scale), _FLOATS))
    nudge = builder.bitcast(builder.or_(builder.and_(bits, _all(_SIGN)), _all(_BELOW_HALF)), _FLOATS)
    _store(builder, builder.trunc(builder.fptosi(builder.fadd(scaled, nudge), _INTS), _BYTES), out)
    return builder.bitcast(scale, _I32)


def _emit_q4_0(builder: Any, bits: Any, out: Any) -> Any:
    size = builder.and_(bits, _all(_SIZE))
    top = _largest(builder, size)
    # the sign of the first of the largest
    equal = builder.bitcast(builder.icmp_unsigned("==", size, _splat(builder, top, _INTS)), _I32)
    negative = builder.bitcast(builder.icmp_signed("<", bits, _all(0)), _I32)
    first = builder.and_(equal, builder.neg(equal))
    zero = ir.Constant(_I32, 0)
    below = builder.icmp_unsigned("!=", builder.and_(first, negative), zero)
    below = builder.and_(below, builder.icmp_unsigned("!=", top, zero))
    signed = builder.or_(top, builder.select(below, ir.Constant(_I32, _SIGN), zero))
    scale = builder.fdiv(builder.bitcast(signed, _FLOAT), ir.Constant(_FLOAT, -8.0))
    scaled = builder.fmul(builder.bitcast(bits, _FLOATS), _splat(builder, _inverse(builder, scale), _FLOATS))
    level = builder.fptosi(builder.fadd(scaled, ir.Constant(_FLOATS, [8.5] * BLOCK)), _INTS)
    level = builder.select(builder.icmp_signed("<", level, _all(15)), level, _all(15))
    level = builder.trunc(level, _BYTES)
    low, high = (_half_of(builder, level, start) for start in (0, BLOCK // 2))
    _store(builder, builder.or_(low, builder.shl(high, ir.Constant(low.type, [4] * (BLOCK // 2)))), out)
    return builder.bitcast(scale, _I32)


def _half_of(builder: Any, level: Any, start: int) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, BLOCK // 2), list(range(start, start + BLOCK // 2)))
    return builder.shuffle_vector(level, ir.Constant(_BYTES, ir.Undefined), mask)


def _block_encoder(emit: Any, half_width: bool) -> Any:
    @intrinsic
    def encode(typingctx: Any, source: Any, out: Any) -> Any:  # noqa: ARG001
        """Encode the block at address ``source``, levels to ``out``; returns the bits of its float32 scale."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
            return emit(builder, _load_bits(builder, args[0], half_width), args[1])

        return types.uint32(types.int64, types.int64), codegen

    return encode


_q8_0_of_floats, _q8_0_of_bfloats = _block_encoder(_emit_q8_0, False), _block_encoder(_emit_q8_0, True)
_q4_0_of_floats, _q4_0_of_bfloats = _block_encoder(_emit_q4_0, False), _block_encoder(_emit_q4_0, True)
_half_bits = compiled(half_bits)


@intrinsic
def _widen_block(typingctx: Any, source: Any, out: Any) -> Any:  # noqa: ARG001
    """32 bfloat16 at address ``source`` as float32 at ``out``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
        _store(builder, _load_bits(builder, args[0], True), args[1])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@cached
def _encode(source: int, blocks: int, out: Any, address: int, short: bool, small: bool) -> int:
    """Encode blocks of bfloat16 if ``short``, else of float32, as Q4_0 if ``small``, else as Q8_0.

    Returns how many blocks have a scale whose inverse overflows.
    """
    odd = 0
    size = 2 * BLOCK if short else 4 * BLOCK
    block_bytes = 2 + BLOCK // 2 if small else 2 + BLOCK
    for b in range(blocks):
        block, at = source + b * size, b * block_bytes
        if small:
            scale = _q4_0_of_bfloats(block, address + at + 2) if short else _q4_0_of_floats(block, address + at + 2)
        else:
            scale = _q8_0_of_bfloats(block, address + at + 2) if short else _q8_0_of_floats(block, address + at + 2)
        odd += np.uint32(0) < (scale & np.uint32(0x7FFFFFFF)) <= np.uint32(_OVERFLOW)
        half = _half_bits(scale)
        out[at], out[at + 1] = half & np.uint32(255), half >> np.uint32(8)
    return odd


@cached
def _widen(source: int, blocks: int, out: int) -> None:
    for b in range(blocks):
        _widen_block(source + b * BLOCK * 2, out + b * BLOCK * 4)
