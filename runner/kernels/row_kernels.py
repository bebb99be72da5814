"""The kernels of a block type behind two addresses: products of rows and inputs, and weighted sums of rows.

A step calls them by address, so only those of the types in a file are compiled, each cached on disk. All arguments but
two records are int64: addresses, bytes, and steps counted in float32.

    products(params, kind, base, stride, listed, first, count, columns, x, x_stride, chosen, tokens, out, row_step,
             token_step, scratch)
        out[j row_step + t token_step] = row j . input t, for ``count`` rows from ``first`` on (of the int32 list at
        ``listed``, if that is not 0) and ``tokens`` inputs (of the list at ``chosen``, if that is not 0)
    add(params, kind, base, stride, listed, first, count, last, weights, columns, into, scratch)
        into += sum of weights[j] x row j over those rows; rows before ``last`` may be asked for ahead

``kind`` is the type's record: types without own kernels use its addresses of ggml's functions. ``scratch`` is a
thread's own.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types

from .compiling import SUM, compile_c, signature_of
from .memory import (
    call_row,
    call_vec_dot,
    load_bf16,
    load_f16,
    load_f32,
    load_i32,
    store_f32,
    store_i64,
)
from .parameters import SCRATCH_BYTES, TYPE, BlockType, Parameters, numba_type, offset_of
from .simd import block_tiles, float_vectors
from .simd.block_groups import GROUP
from .simd.block_sums import add_rows, adds_abreast
from .simd.block_tiles import ABREAST, tile
from .simd.emit import FLOAT, I32, I64, Emit, emitted, streams_apart
from .simd.float_vectors import blend, float_tile
from .simd.grouped_sums import GROUP_ROWS, add_group, adds_groups, rows_asked

_ROWS, _INPUTS, _AHEAD, _OUT = 0, 64, 128, 192  # where in the scratch addresses and results stand
_ROW_CHUNK, _TOKENS = 32, 8  # rows that stay in the cache while groups of so many inputs pass
_AHEAD_BYTES = 36 << 10  # of rows that are asked for before they are needed
_AHEAD_APART_BYTES = 2304  # the same, of each of four places
_LISTED = 8  # rows here and there that are asked for before they are needed
_MANY = 512  # where in the scratch a group's addresses, weights, and room for grouped_sums.py stand
_MANY_SHARES = _MANY + 8 * GROUP_ROWS
_MANY_AHEAD = _MANY_SHARES + 4 * GROUP_ROWS
_MANY_SPARE = _MANY_AHEAD + 8 * 32  # room for rows_asked(GROUP_ROWS) addresses, up to the end of a cache line


class Kernels(NamedTuple):
    """Addresses, valid in this process."""

    products: int
    add: int


@functools.cache
def kernels(type_name: str) -> Kernels:
    """The kernels of a type: own ones where there are, else loops over ggml's row functions."""
    if type_name in float_vectors.KINDS:
        makers, number = (_float_products, _float_add), float_vectors.KINDS.index(type_name)
    elif type_name in block_tiles.KINDS:
        makers, number = (_block_products, _block_add), block_tiles.KINDS.index(type_name)
    else:
        makers, number = (_ggml_products, _ggml_add), 0
    made = []
    for function in (make(number) for make in makers):
        # Numba names machine code by function and by a counter that begins anew in each process: of two types' kernels,
        # compiled in two processes and cached, the names would be the same, and LLVM would have two of a name
        if makers[0] is not _ggml_products:
            function.__qualname__ = f"{function.__name__}_{type_name}"
        made.append(compile_c(function, signature_of(function)))
    _keep.extend(made)
    return Kernels(*(function.address for function in made))


_keep: list[Any] = []  # compiled code lives as long as the object that Numba made


def _kernel_call(name: str, count: int) -> Any:
    offset = offset_of(TYPE, name)

    @emitted(types.void, numba_type(Parameters), numba_type(BlockType), *[types.int64] * count)
    def call(e: Emit, params: Any, kind: Any, *numbers: Any) -> None:
        arguments = [params, kind, *numbers]
        function = ir.FunctionType(ir.IntType(8).as_pointer(), [each.type for each in arguments]).as_pointer()
        e.b.call(e.b.inttoptr(e.load(I64, e.b.ptrtoint(kind, I64), offset), function), arguments)

    return call


call_products, call_add = _kernel_call("products", 14), _kernel_call("add", 10)


@emitted(types.int64, types.int64, types.int64)
def _number(e: Emit, listed: Any, i: Any) -> Any:
    """Row or token ``i`` of an int32 list, or without one ``i`` itself."""
    number = e.variable(i)
    with e.b.if_then(e.b.icmp_unsigned("!=", listed, ir.Constant(I64, 0))):
        e.b.store(e.b.sext(e.b.load(e.at(I32, listed, i)), I64), number)
    return e.b.load(number)


@emitted(types.void, types.int64, types.int64)
def _ask(e: Emit, address: Any, size: Any) -> None:
    """Ask for the cache lines of so many bytes."""
    line_bytes = ir.Constant(I64, 64)
    start = e.b.mul(e.b.udiv(address, line_bytes), line_bytes)
    lines = e.b.udiv(e.b.add(e.b.sub(e.b.add(address, size), start), ir.Constant(I64, 63)), line_bytes)
    with e.loop(lines) as line:
        e.prefetch(e.b.add(start, e.b.mul(line, line_bytes)))


@emitted(types.void, *[types.int64] * 7)
def _fill(e: Emit, places: Any, base: Any, stride: Any, listed: Any, first: Any, last: Any, slots: Any) -> None:
    """Addresses of rows or inputs ``first`` to ``last``; the last fills the slots that are left."""
    with e.loop(slots) as slot:
        i = e.b.add(first, slot)
        i = e.b.select(e.b.icmp_signed("<", i, last), i, last)
        e.b.store(e.b.add(base, e.b.mul(_number(e, listed, i), stride)), e.at(I64, places, slot))


@emitted(types.float32, *[types.int64] * 3)
def _float(e: Emit, kind: Any, row: Any, i: Any) -> Any:
    """Number ``i`` of a row of a float type (an index of float_vectors.KINDS, a constant)."""
    number = e.variable(ir.Constant(FLOAT, 0.0))
    for index, load in enumerate((load_f32, load_f16, load_bf16)):
        with e.b.if_then(e.b.icmp_unsigned("==", kind, ir.Constant(I64, index))):
            e.b.store(load(e, row, i), number)
    return e.b.load(number)


@njit(fastmath=SUM)
def _dot(kind: int, row: int, x: int, n: int) -> Any:
    total = np.float32(0)
    for i in range(n):
        total += _float(kind, row, i) * load_f32(x, i)
    return total


# Numba caches a function by what it closes over, pickled: numbers are the same in every process, functions are not.
def _block_products(number: int) -> Any:
    spread = streams_apart()

    def products(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int, columns: int,  # noqa: ARG001
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> None:  # fmt: skip
        rows, xs, outs, nexts = scratch + _ROWS, scratch + _INPUTS, scratch + _OUT, scratch + _AHEAD
        end, ahead = first + count, _LISTED if listed else max(4, _AHEAD_BYTES // stride)
        for t in range(tokens if tokens <= 2 else 0):
            token = _number(chosen, t)
            target = out + 4 * token * token_step
            store_i64(xs, 0, x + token * x_stride)
            for i in range(first, min(first + _LISTED, end) if listed else first):
                _ask(base + load_i32(listed, i) * stride, stride)
            quarter = 0 if listed or not spread else count // 4
            for i in range(quarter):
                for r in range(4):
                    row = base + (first + i + r * quarter) * stride
                    store_i64(rows, r, row)
                    store_i64(nexts, r, row + _AHEAD_APART_BYTES)
                tile(number, 4, 1, 2, rows, xs, columns, nexts, outs)
                for r in range(4):
                    store_f32(target, (first + i + r * quarter) * row_step, load_f32(outs, r))
            done = first + 4 * quarter
            while spread and listed and done + ABREAST <= end:
                _fill(rows, base, stride, listed, done, end - 1, ABREAST)
                _fill(nexts, base, stride, listed, done + ABREAST, end - 1, ABREAST)
                tile(number, ABREAST, 1, 2, rows, xs, columns, nexts, outs)
                for r in range(ABREAST):
                    store_f32(target, load_i32(listed, done + r) * row_step, load_f32(outs, r))
                done += ABREAST
            for i in range(done, end, 4):
                _fill(rows, base, stride, listed, i, end - 1, 4)
                _fill(nexts, base, stride, listed, i + ahead, end - 1, 4)
                tile(number, 4, 1, 1, rows, xs, columns, nexts, outs)
                for r in range(min(4, end - i)):
                    store_f32(target, _number(listed, i + r) * row_step, load_f32(outs, r))
        if tokens <= 2:
            return
        for start in range(first, end, _ROW_CHUNK):
            stop = min(start + _ROW_CHUNK, end)
            for t in range(0, tokens, _TOKENS):
                some = min(_TOKENS, tokens - t)
                _fill(xs, x, x_stride, chosen, t, t + some - 1, _TOKENS)
                for i in range(start, stop, 2):
                    two = min(2, stop - i)
                    _fill(rows, base, stride, listed, i, i + two - 1, 2)
                    tile(number, 2, _TOKENS, 0, rows, xs, columns, 0, outs)
                    for r in range(two):
                        at = _number(listed, i + r) * row_step
                        for s in range(some):
                            store_f32(out, at + _number(chosen, t + s) * token_step, load_f32(outs, 2 * s + r))

    return products


def _block_add(number: int) -> Any:
    grouped, far, eight = adds_groups(number), streams_apart(), adds_abreast(number)

    def add(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int, last: int,  # noqa: ARG001
        weights: int, columns: int, into: int, scratch: int,
    ) -> None:  # fmt: skip
        rows, shares, nexts, end = scratch + _ROWS, scratch + _OUT, scratch + _AHEAD, first + count
        for i in range(first, min(first + (ABREAST if eight and listed else 4), end)):
            _ask(base + _number(listed, i) * stride, stride)
        done, whole = first, columns // GROUP * GROUP
        while grouped and whole and done + 4 <= end:
            some = min(GROUP_ROWS, end - done)
            fours = (some + 3) // 4
            _fill(scratch + _MANY, base, stride, listed, done, end - 1, 4 * fours)
            _fill(scratch + _MANY_AHEAD, base, stride, listed, done + some, last - 1, rows_asked(4 * fours))
            for r in range(4 * fours):
                share = load_f32(weights, _number(listed, done + r)) if r < some else np.float32(0)
                store_f32(scratch + _MANY_SHARES, r, share)
            ahead, spare = scratch + _MANY_AHEAD, scratch + _MANY_SPARE
            add_group(fours, scratch + _MANY, scratch + _MANY_SHARES, columns, into, ahead, far and listed != 0, spare)
            done += some
        for part in range(2):  # the columns that groups leave out, and the rows
            i, stop, skipped = (first, done, whole) if part == 0 else (done, end, 0)
            start = base + stride * skipped // columns
            while i < stop and skipped < columns:
                some = 4 if i + 3 <= stop else 1  # three are four, the last of them with nothing
                if eight and listed and i + ABREAST <= stop:
                    some = ABREAST
                _fill(nexts, start, stride, listed, i + max(some, 4), last - 1, some)
                _fill(rows, start, stride, listed, i, stop - 1, some)
                for r in range(some):
                    store_f32(shares, r, load_f32(weights, _number(listed, i + r)) if i + r < stop else np.float32(0))
                if eight and some == ABREAST:
                    add_rows(number, ABREAST, rows, shares, columns - skipped, into + 4 * skipped, nexts)
                elif some == 4:
                    add_rows(number, 4, rows, shares, columns - skipped, into + 4 * skipped, nexts)
                else:
                    add_rows(number, 1, rows, shares, columns - skipped, into + 4 * skipped, nexts)
                i += some

    return add


def _float_products(number: int) -> Any:
    def products(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int, columns: int,  # noqa: ARG001
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> None:  # fmt: skip
        rows, xs, outs, end = scratch + _ROWS, scratch + _INPUTS, scratch + _OUT, first + count
        if tokens == 1 or columns % 16:
            for i in range(first, end):
                if listed and i + 1 < end:
                    _ask(base + load_i32(listed, i + 1) * stride, stride)
                j = _number(listed, i)
                store_i64(rows, 0, base + j * stride)
                for t in range(tokens):
                    token = _number(chosen, t)
                    store_i64(xs, 0, x + token * x_stride)
                    if columns % 16:
                        store_f32(outs, 0, _dot(number, base + j * stride, x + token * x_stride, columns))
                    else:
                        float_tile(number, 1, 1, rows, xs, columns, outs)
                    store_f32(out, j * row_step + token * token_step, load_f32(outs, 0))
            return
        for start in range(first, end, _ROW_CHUNK):
            stop = min(start + _ROW_CHUNK, end)
            for t in range(0, tokens, 4):
                some = min(4, tokens - t)
                _fill(xs, x, x_stride, chosen, t, t + some - 1, 4)
                for i in range(start, stop, 4):
                    _fill(rows, base, stride, listed, i, stop - 1, 4)
                    float_tile(number, 4, 4, rows, xs, columns, outs)
                    for r in range(min(4, stop - i)):
                        at = _number(listed, i + r) * row_step
                        for s in range(some):
                            store_f32(out, at + _number(chosen, t + s) * token_step, load_f32(outs, 4 * s + r))

    return products


def _float_add(number: int) -> Any:
    size = float_vectors.SIZES[number]

    def add(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int, last: int,  # noqa: ARG001
        weights: int, columns: int, into: int, scratch: int,  # noqa: ARG001
    ) -> None:  # fmt: skip
        end = first + count
        if listed == 0 and columns % 64 == 0:  # cached values
            rows = base + first * stride
            for d in range(0, columns, 64):
                blend(number, 4, rows + d * size, stride, 0, weights + 4 * first, count, into + 4 * d)
            return
        for i in range(first, end):
            if i + 1 < last:
                _ask(base + _number(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            row, share = base + j * stride, load_f32(weights, j)
            for d in range(columns):
                store_f32(into, d, load_f32(into, d) + share * _float(number, row, d))

    return add


def _ggml_products(number: int) -> Any:  # noqa: ARG001
    def products(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int,  # noqa: ARG001
        columns: int,
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> None:  # fmt: skip
        outs, end = scratch + _OUT, first + count
        for i in range(first, end):
            if listed and i + 1 < end:
                _ask(base + load_i32(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            for t in range(tokens):
                token = _number(chosen, t)
                call_vec_dot(kind.vec_dot, columns, outs, base + j * stride, x + token * x_stride)
                store_f32(out, j * row_step + token * token_step, load_f32(outs, 0))

    return products


def _ggml_add(number: int) -> Any:  # noqa: ARG001
    def add(
        params: Parameters, kind: BlockType, base: int, stride: int, listed: int, first: int, count: int,  # noqa: ARG001
        last: int,
        weights: int, columns: int, into: int, scratch: int,
    ) -> None:  # fmt: skip
        decoded = scratch + SCRATCH_BYTES
        for i in range(first, first + count):
            if i + 1 < last:
                _ask(base + _number(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            share = load_f32(weights, j)
            call_row(kind.to_float, base + j * stride, decoded, columns)
            for d in range(columns):
                store_f32(into, d, load_f32(into, d) + share * load_f32(decoded, d))

    return add
