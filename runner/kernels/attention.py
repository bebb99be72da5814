"""The attention half of a layer, as each thread runs it, for one token or a block of them.

The cache is a ring: position p is in slot p modulo the number of slots, those of window and block, or of the context.
"""

from typing import Any

import numpy as np
from numba import njit

from .barrier import meet
from .compiling import compiled
from .matrix_products import multiply_run, ready
from .memory import call_row, load_f32, store_f16, store_f32
from .parameters import Layer, Parameters, row_at
from .residual import add_to_residual, clear, normalise
from .rounded_inputs import round_input
from .row_kernels import call_add, call_products
from .simd.float_vectors import exp_shifted
from .weight_types import FLOATS
from .work_shares import run_start


@compiled
def rotate(params: Parameters, x: int, cos: int, sin: int, first: int, end: int) -> None:
    """Turn neighbouring pairs (2i, 2i+1) of each head by the angles of a position; rows ``first`` to ``end``.

    Of a head the first `rotated` dimensions turn; at ``cos`` and ``sin`` stand half as many numbers.
    """
    head_dim, rotated = params.head_dim, params.rotated
    for r in range(first, end, 2):
        within = r % head_dim
        if within < rotated:
            a, b, c, s = load_f32(x, r), load_f32(x, r + 1), load_f32(cos, within // 2), load_f32(sin, within // 2)
            store_f32(x, r, a * c - b * s)
            store_f32(x, r + 1, a * s + b * c)


@compiled
def place_rows(params: Parameters, x: int, first: int, end: int, slot: int) -> None:
    """Rows ``first`` to ``end`` of a new key or value into a slot, whose address is that of the first head.

    As floats of 2 or 4 bytes, or by ggml's from_float in runs of 32.
    """
    head_dim, size = params.head_dim, params.cache_row
    head_bytes = params.slots * size
    if params.cache_type.kind == FLOATS:
        for r in range(first, end):
            place = slot + r // head_dim * head_bytes
            if size == 2 * head_dim:
                store_f16(place, r % head_dim, load_f32(x, r))
            else:
                store_f32(place, r % head_dim, load_f32(x, r))
    else:
        run_bytes = size * 32 // head_dim
        for r in range(first, end, 32):
            place = slot + r // head_dim * head_bytes + r % head_dim // 32 * run_bytes
            call_row(params.cache_type.from_float, x + 4 * r, place, 32)


@compiled
def place_in_cache(params: Parameters, thread: int, layer: Layer) -> None:
    """Turn this thread's rows of queries and keys, and put its rows of keys and values into the cache."""
    first_q, end_q = (
        run_start(params, params.heads * params.head_dim, thread),
        run_start(params, params.heads * params.head_dim, thread + 1),
    )
    first, end = (
        run_start(params, params.kv_heads * params.head_dim, thread),
        run_start(params, params.kv_heads * params.head_dim, thread + 1),
    )
    for t in range(params.tokens):
        p = params.position + t
        cos, sin = row_at(params.cos, p), row_at(params.sin, p)
        rotate(params, row_at(params.query, t), cos, sin, first_q, end_q)
        rotate(params, row_at(params.key, t), cos, sin, first, end)
        slot = p % params.slots * params.cache_row
        place_rows(params, row_at(params.key, t), first, end, row_at(params.keys, layer.index) + slot)
        place_rows(params, row_at(params.value, t), first, end, row_at(params.values, layer.index) + slot)


@njit(fastmath={"nnan", "nsz", "reassoc"})
def _largest(at: int, count: int) -> Any:
    top = load_f32(at, 0)
    for i in range(1, count):
        top = max(top, load_f32(at, i))
    return top


@compiled
def softmax(params: Parameters, at: int, count: int, scale: float) -> np.float32:  # noqa: ARG001
    """Replace ``count`` floats x at an address by exp(scale (x - largest)); returns their sum.

    There is room for 16 more: they are overwritten.
    """
    top = np.float32(_largest(at, count) * scale)
    for i in range(count):
        store_f32(at, i, load_f32(at, i) * scale)
    for i in range(count, count + 16):
        store_f32(at, i, np.float32(-1e30))
    total = np.float32(0)
    for i in range(0, count, 16):
        total += exp_shifted(at + 4 * i, top)
    return total


@compiled
def attend_heads(
    params: Parameters, thread: int, heads: int, first: int, end: int, queries: int, keys: int, values: int, out: int
) -> None:
    """Softmax attention of ``heads`` queries that share keys over positions ``first`` to ``end``; all by address.

    Positions lie in one run of slots, or in two where they pass the ring's end.
    """
    head_dim, size, slots, kind = params.head_dim, params.cache_row, params.slots, params.cache_type
    scores, scratch = row_at(params.scores, thread), row_at(params.scratch, thread)
    x, stride, total = queries, 4 * head_dim, end - first
    if kind.kind != FLOATS:
        x, stride = row_at(params.queries, thread), params.queries.row_bytes // (params.heads // params.kv_heads)
        for h in range(heads):
            round_input(params, queries + 4 * head_dim * h, head_dim, x + stride * h, 1)
    room = total + 32
    slot = first % slots
    run = min(total, slots - slot)
    for part in range(2 if run < total else 1):
        begin, count, done = (slot, run, 0) if part == 0 else (0, total - run, run)
        target = scores + 4 * (done - begin)
        call_products(
            params, kind, keys, size, 0, begin, count, head_dim, x, stride, 0, heads, target, 1, room, scratch
        )
    for h in range(heads):
        mine, target = scores + 4 * room * h, out + 4 * head_dim * h
        share = np.float32(1) / softmax(params, mine, total, np.float32(1.0 / np.sqrt(head_dim)))
        clear(params, target, head_dim)
        for part in range(2 if run < total else 1):
            begin, count, done = (slot, run, 0) if part == 0 else (0, total - run, run)
            weights = mine + 4 * (done - begin)
            call_add(params, kind, values, size, 0, begin, count, begin + count, weights, head_dim, target, scratch)
        for i in range(head_dim):
            store_f32(target, i, load_f32(target, i) * share)


@compiled
def attend(params: Parameters, thread: int, layer: Layer) -> None:
    """Each thread takes tokens' heads in turn: those that share keys together, if that leaves no thread idle."""
    heads, head_dim, kv_heads = params.heads, params.head_dim, params.kv_heads
    group = heads // kv_heads
    some = group if params.tokens > 1 or kv_heads % params.threads == 0 else 1
    units = heads // some
    for unit in range(thread, units * params.tokens, params.threads):
        t, head = unit // units, unit % units * some
        p = params.position + t
        start, place = head // group * params.slots * params.cache_row, 4 * head * head_dim
        attend_heads(
            params, thread, some, max(0, p - params.window + 1), p + 1, row_at(params.query, t) + place,
            row_at(params.keys, layer.index) + start, row_at(params.values, layer.index) + start,
            row_at(params.attended, t) + place,
        )  # fmt: skip


@compiled
def attention(params: Parameters, thread: int, layer: Layer) -> None:
    """x += attention(norm(x)), with the new positions' keys and values put into the cache."""
    normalise(params, thread, layer.attn_norm)
    row, tokens = thread if params.tokens == 1 else 0, params.tokens
    x, prepared = row_at(params.normed, row), params.prepared
    form = ready(params, thread, layer.attn_q, x, prepared, 0)
    multiply_run(params, thread, layer.attn_q, 0, x, prepared, row, 0, tokens, params.query.address)
    form = ready(params, thread, layer.attn_k, x, prepared, form)
    multiply_run(params, thread, layer.attn_k, 0, x, prepared, row, 0, tokens, params.key.address)
    ready(params, thread, layer.attn_v, x, prepared, form)
    multiply_run(params, thread, layer.attn_v, 0, x, prepared, row, 0, tokens, params.value.address)
    place_in_cache(params, thread, layer)
    meet(params, thread)
    attend(params, thread, layer)
    meet(params, thread)
    x = params.attended.address
    ready(params, thread, layer.attn_output, x, prepared, 0)
    multiply_run(params, thread, layer.attn_output, 0, x, prepared, row, 0, tokens, params.added.address)
    meet(params, thread)
    add_to_residual(params, thread)
