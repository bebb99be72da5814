"""The attention half of a layer, as each thread runs it, for one token or a block of them.

The cache is a ring: position p is in slot p modulo the number of slots, those of window and block, or of the context.
"""

import numpy as np

from .access import at, number, row_bytes, tensor_of, type_field
from .compiling import compiled
from .elementwise import rotate, softmax
from .inputs import round_input
from .native import call_add, call_products, call_row, load_f32, store_f16, store_f32
from .parts import add_to_residual, clear, gather_all, multiply_run, normalise, ready, run_of
from .rows import ADD, FLOATS, FROM_FLOAT, KIND, PRODUCTS
from .tables import (
    ADDED,
    ATTENDED,
    CACHE_ROW,
    CACHE_TYPE,
    COS,
    HEAD_DIM,
    HEADS,
    KEY,
    KEYS,
    KV_HEADS,
    NORMED,
    PREPARED,
    QUERIES,
    QUERY,
    ROTATED,
    SCORES,
    SCRATCH,
    SIN,
    SLOTS,
    TYPES,
    VALUE,
    VALUES,
    WINDOW,
    K,
    O,
    Q,
    V,
)


@compiled
def attention(m: int, thread: int, threads: int, layer: int, position: int, tokens: int) -> None:
    """x += attention(norm(x)), with the new positions' keys and values put into the cache."""
    normalise(m, thread, threads, tokens, 2 * layer)
    row = thread if tokens == 1 else 0
    x, form = at(m, NORMED, row), 0
    for role in (Q, K, V):
        tensor = tensor_of(m, layer, role)
        form = ready(m, thread, threads, tokens, tensor, x, PREPARED, form)
        out = at(m, QUERY if role == Q else KEY if role == K else VALUE, 0)
        multiply_run(m, thread, threads, tensor, 0, x, PREPARED, row, 0, tokens, out)
    _place(m, thread, threads, layer, position, tokens)
    gather_all(m, thread, threads)
    _attend(m, thread, threads, layer, position, tokens)
    gather_all(m, thread, threads)
    tensor, x = tensor_of(m, layer, O), at(m, ATTENDED, 0)
    ready(m, thread, threads, tokens, tensor, x, PREPARED, 0)
    multiply_run(m, thread, threads, tensor, 0, x, PREPARED, row, 0, tokens, at(m, ADDED, 0))
    gather_all(m, thread, threads)
    add_to_residual(m, thread, threads, tokens)


@compiled
def _place(m: int, thread: int, threads: int, layer: int, position: int, tokens: int) -> None:
    """Turn this thread's rows of queries and keys, and put its rows of keys and values into the cache."""
    head_dim, rotated = number(m, HEAD_DIM), number(m, ROTATED)
    first_q, end_q = run_of(number(m, HEADS) * head_dim, thread, threads)
    first, end = run_of(number(m, KV_HEADS) * head_dim, thread, threads)
    slots, size, type_id = number(m, SLOTS), number(m, CACHE_ROW), number(m, CACHE_TYPE)
    types = at(m, TYPES, 0)
    convert = size // head_dim if type_field(types, type_id, KIND) == FLOATS else type_field(types, type_id, FROM_FLOAT)
    for t in range(tokens):
        p = position + t
        rotate(at(m, QUERY, t), head_dim, at(m, COS, p), at(m, SIN, p), rotated, first_q, end_q)
        rotate(at(m, KEY, t), head_dim, at(m, COS, p), at(m, SIN, p), rotated, first, end)
        for new, cache in ((KEY, KEYS), (VALUE, VALUES)):
            slot = at(m, cache, layer) + p % slots * size
            place_rows(at(m, new, t), first, end, head_dim, slot, slots * size, convert, size)


@compiled
def place_rows(
    x: int, first: int, end: int, head_dim: int, slot: int, head_bytes: int, convert: int, size: int
) -> None:
    """Rows ``first`` to ``end`` of a new key or value into a slot, whose address is that of the first head.

    As floats of 2 or 4 bytes if that is ``convert``, or by ggml's from_float there in runs of 32.
    """
    if convert <= 4:
        for r in range(first, end):
            place = slot + r // head_dim * head_bytes
            if convert == 2:
                store_f16(place, r % head_dim, load_f32(x, r))
            else:
                store_f32(place, r % head_dim, load_f32(x, r))
        return
    run_bytes = size * 32 // head_dim
    for r in range(first, end, 32):
        call_row(convert, x + 4 * r, slot + r // head_dim * head_bytes + r % head_dim // 32 * run_bytes, 32)


@compiled
def _attend(m: int, thread: int, threads: int, layer: int, position: int, tokens: int) -> None:
    """Each thread takes tokens' heads in turn: those that share keys together, if that leaves no thread idle."""
    heads, head_dim, slots = number(m, HEADS), number(m, HEAD_DIM), number(m, SLOTS)
    group = heads // number(m, KV_HEADS)
    some = group if tokens > 1 or number(m, KV_HEADS) % threads == 0 else 1
    units = heads // some
    for unit in range(thread, units * tokens, threads):
        t, head = unit // units, unit % units * some
        p = position + t
        start = head // group * slots * number(m, CACHE_ROW)
        attend_heads(
            at(m, TYPES, 0), number(m, CACHE_TYPE), number(m, CACHE_ROW), slots, head_dim, some,
            max(0, p - number(m, WINDOW) + 1), p + 1, at(m, QUERY, t) + 4 * head * head_dim,
            at(m, KEYS, layer) + start, at(m, VALUES, layer) + start, at(m, ATTENDED, t) + 4 * head * head_dim,
            at(m, SCORES, thread), at(m, QUERIES, thread), row_bytes(m, QUERIES) // group, at(m, SCRATCH, thread),
        )  # fmt: skip


@compiled
def attend_heads(
    types: int, type_id: int, size: int, slots: int, head_dim: int, heads: int, first: int, end: int,
    queries: int, keys: int, values: int, out: int, scores: int, prepared: int, prepared_stride: int, scratch: int,
) -> None:  # fmt: skip
    """Softmax attention of ``heads`` queries that share keys over positions ``first`` to ``end``; all by address.

    Positions lie in one run of slots, or in two where they pass the ring's end.
    """
    x, stride, total = queries, 4 * head_dim, end - first
    if type_field(types, type_id, KIND) != FLOATS:
        for h in range(heads):
            round_input(queries + 4 * head_dim * h, head_dim, prepared + prepared_stride * h, 1)
        x, stride = prepared, prepared_stride
    room = total + 32
    slot = first % slots
    run = min(total, slots - slot)
    for part in range(2 if run < total else 1):
        begin, count, done = (slot, run, 0) if part == 0 else (0, total - run, run)
        target = scores + 4 * (done - begin)
        call_products(
            type_field(types, type_id, PRODUCTS),
            (0, keys, size, 0, begin, count, head_dim, x, stride, 0, heads, target, 1, room, scratch),
        )
    for h in range(heads):
        mine, target = scores + 4 * room * h, out + 4 * head_dim * h
        share = np.float32(1) / softmax(mine, total, np.float32(1.0 / np.sqrt(head_dim)))
        clear(target, head_dim)
        for part in range(2 if run < total else 1):
            begin, count, done = (slot, run, 0) if part == 0 else (0, total - run, run)
            weights = mine + 4 * (done - begin)
            call_add(
                type_field(types, type_id, ADD),
                (0, values, size, 0, begin, count, begin + count, weights, head_dim, target, scratch),
            )
        for i in range(head_dim):
            store_f32(target, i, load_f32(target, i) * share)
