"""The kernels of a block type behind two addresses: products of rows and inputs, and weighted sums of rows.

A step calls them by address, so only those of the types in a file are compiled, each cached on disk. All arguments are
int64: addresses, bytes, and steps counted in float32.

    products(function, base, stride, listed, first, count, columns, x, x_stride, chosen, tokens, out, row_step,
             token_step, scratch)
        out[j row_step + t token_step] = row j . input t, for ``count`` rows from ``first`` on (of the int32 list at
        ``listed``, if that is not 0) and ``tokens`` inputs (of the list at ``chosen``, if that is not 0)
    add(function, base, stride, listed, first, count, last, weights, columns, into, scratch)
        into += sum of weights[j] x row j over those rows; rows before ``last`` may be asked for ahead

``function`` is ggml's vec_dot or to_float for types without own kernels, ``scratch`` a thread's own.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import float_tiles, tiles
from .adders import add_rows
from .compiling import compiled, compiled_sum, whole
from .float_tiles import blend, float_tile
from .native import (
    call_row,
    call_vec_dot,
    load_bf16,
    load_f16,
    load_f32,
    load_i32,
    prefetch,
    store_f32,
    store_i64,
)
from .tiles import tile

PRODUCTS_ARGUMENTS, ADD_ARGUMENTS = 15, 11
SCRATCH_BYTES = 512  # of a thread, before the floats of a decoded row
_ROWS, _INPUTS, _AHEAD, _OUT = 0, 64, 128, 192  # where in it addresses and results stand
_ROW_CHUNK, _TOKENS = 32, 8  # rows that stay in the cache while groups of so many inputs pass
_AHEAD_BYTES = 9 << 10  # of rows that are asked for before they are needed
_LISTED = 4  # rows here and there that are read side by side, while as many are asked for


class Kernels(NamedTuple):
    """Addresses, valid in this process."""

    products: int
    add: int


@functools.cache
def source_stamp() -> int:
    """A number that changes with any source that is compiled: Numba's caches look at one file each."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")


@functools.cache
def kernels(type_name: str) -> Kernels:
    """The kernels of a type: own ones where there are, else loops over ggml's row functions."""
    if type_name in float_tiles.KINDS:
        makers, number = (_float_products, _float_add), float_tiles.KINDS.index(type_name)
    elif type_name in tiles.KINDS:
        makers, number = (_block_products, _block_add), tiles.KINDS.index(type_name)
    else:
        makers, number = (_ggml_products, _ggml_add), 0
    try:
        made = [make(number, source_stamp(), True) for make in makers]
    except RuntimeError:  # Numba found no folder that it may write to
        made = [make(number, source_stamp(), False) for make in makers]
    _keep.extend(made)
    return Kernels(*(function.address for function in made))


_keep: list[Any] = []


@compiled
def _number(listed: int, i: int) -> Any:
    """Row or token ``i`` of a list, or without one ``i`` itself."""
    return load_i32(listed, i) if listed else i


@compiled
def _ask(address: int, size: int) -> None:
    for offset in range(0, size, 64):
        prefetch(address + offset)


@compiled
def _fill(places: int, base: int, stride: int, listed: int, first: int, last: int, slots: int) -> None:
    """Addresses of rows or inputs ``first`` to ``last``; the last fills the slots that are left."""
    for s in range(slots):
        store_i64(places, s, base + _number(listed, min(first + s, last)) * stride)


@compiled
def _float(kind: int, row: int, i: int) -> Any:
    """Number ``i`` of a row of a float type (an index of float_tiles.KINDS)."""
    if kind == 0:
        return load_f32(row, i)
    return load_f16(row, i) if kind == 1 else load_bf16(row, i)


@compiled_sum
def _dot(kind: int, row: int, x: int, n: int) -> Any:
    total = np.float32(0)
    for i in range(n):
        total += _float(kind, row, i) * load_f32(x, i)
    return total


# Numba caches a function by what it closes over, pickled: numbers are the same in every process, functions are not.
def _block_products(number: int, stamp: int, cache: bool) -> Any:
    @whole(PRODUCTS_ARGUMENTS, cache=cache)
    def products(
        function: int, base: int, stride: int, listed: int, first: int, count: int, columns: int,  # noqa: ARG001
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> int:  # fmt: skip
        rows, xs, outs, nexts = scratch + _ROWS, scratch + _INPUTS, scratch + _OUT, scratch + _AHEAD
        end, ahead = first + count, max(1, _AHEAD_BYTES // stride)
        for t in range(tokens if tokens <= 2 else 0):
            token = _number(chosen, t)
            target = out + 4 * token * token_step
            store_i64(xs, 0, x + token * x_stride)
            for j in range(first, end if listed == 0 else first):
                store_i64(rows, 0, base + j * stride)
                store_i64(nexts, 0, base + (j + ahead) * stride)
                tile(number, 1, 1, 1, rows, xs, columns, nexts, outs)
                store_f32(target, j * row_step, load_f32(outs, 0))
            for i in range(first, min(first + _LISTED, end) if listed else first):
                _ask(base + load_i32(listed, i) * stride, stride)
            for i in range(first, end if listed else first, _LISTED):
                _fill(rows, base, stride, listed, i, end - 1, _LISTED)
                _fill(nexts, base, stride, listed, i + _LISTED, end - 1, _LISTED)
                tile(number, _LISTED, 1, 1, rows, xs, columns, nexts, outs)
                for r in range(min(_LISTED, end - i)):
                    store_f32(target, load_i32(listed, i + r) * row_step, load_f32(outs, r))
        if tokens <= 2:
            return stamp
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
        return stamp

    return products


def _block_add(number: int, stamp: int, cache: bool) -> Any:
    @whole(ADD_ARGUMENTS, cache=cache)
    def add(
        function: int, base: int, stride: int, listed: int, first: int, count: int, last: int,  # noqa: ARG001
        weights: int, columns: int, into: int, scratch: int,
    ) -> int:  # fmt: skip
        rows, shares, nexts, end = scratch + _ROWS, scratch + _OUT, scratch + _AHEAD, first + count
        for i in range(first, min(first + 4, end)):
            _ask(base + _number(listed, i) * stride, stride)
        i = first
        while i < end:
            some = 4 if i + 3 <= end else 1  # three are four, the last of them with nothing
            _fill(nexts, base, stride, listed, i + 4, last - 1, some)
            _fill(rows, base, stride, listed, i, end - 1, some)
            for r in range(some):
                store_f32(shares, r, load_f32(weights, _number(listed, i + r)) if i + r < end else np.float32(0))
            if some == 4:
                add_rows(number, 4, rows, shares, columns, into, nexts)
            else:
                add_rows(number, 1, rows, shares, columns, into, nexts)
            i += some
        return stamp

    return add


def _float_products(number: int, stamp: int, cache: bool) -> Any:
    @whole(PRODUCTS_ARGUMENTS, cache=cache)
    def products(
        function: int, base: int, stride: int, listed: int, first: int, count: int, columns: int,  # noqa: ARG001
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> int:  # fmt: skip
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
            return stamp
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
        return stamp

    return products


def _float_add(number: int, stamp: int, cache: bool) -> Any:
    size = float_tiles.SIZES[number]

    @whole(ADD_ARGUMENTS, cache=cache)
    def add(
        function: int, base: int, stride: int, listed: int, first: int, count: int, last: int,  # noqa: ARG001
        weights: int, columns: int, into: int, scratch: int,  # noqa: ARG001
    ) -> int:  # fmt: skip
        end = first + count
        if listed == 0 and columns % 64 == 0:  # cached values
            rows = base + first * stride
            for d in range(0, columns, 64):
                blend(number, 4, rows + d * size, stride, 0, weights + 4 * first, count, into + 4 * d)
            return stamp
        for i in range(first, end):
            if i + 1 < last:
                _ask(base + _number(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            row, share = base + j * stride, load_f32(weights, j)
            for d in range(columns):
                store_f32(into, d, load_f32(into, d) + share * _float(number, row, d))
        return stamp

    return add


def _ggml_products(number: int, stamp: int, cache: bool) -> Any:  # noqa: ARG001
    @whole(PRODUCTS_ARGUMENTS, cache=cache)
    def products(
        function: int, base: int, stride: int, listed: int, first: int, count: int, columns: int,
        x: int, x_stride: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int, scratch: int,
    ) -> int:  # fmt: skip
        outs, end = scratch + _OUT, first + count
        for i in range(first, end):
            if listed and i + 1 < end:
                _ask(base + load_i32(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            for t in range(tokens):
                token = _number(chosen, t)
                call_vec_dot(function, columns, outs, base + j * stride, x + token * x_stride)
                store_f32(out, j * row_step + token * token_step, load_f32(outs, 0))
        return stamp

    return products


def _ggml_add(number: int, stamp: int, cache: bool) -> Any:  # noqa: ARG001
    @whole(ADD_ARGUMENTS, cache=cache)
    def add(
        function: int, base: int, stride: int, listed: int, first: int, count: int, last: int,
        weights: int, columns: int, into: int, scratch: int,
    ) -> int:  # fmt: skip
        decoded = scratch + SCRATCH_BYTES
        for i in range(first, first + count):
            if i + 1 < last:
                _ask(base + _number(listed, i + 1) * stride, stride)
            j = _number(listed, i)
            share = load_f32(weights, j)
            call_row(function, base + j * stride, decoded, columns)
            for d in range(columns):
                store_f32(into, d, load_f32(into, d) + share * load_f32(decoded, d))
        return stamp

    return add
