"""The attention half of a layer, as each thread runs it, for one token or a block of them.

The cache is a ring: position p is in slot p modulo the number of slots, those of window and block, or of the context.
"""

from typing import Any

import numpy as np
from numba import njit

from .attention_output import output_of_block, output_of_token
from .barrier import meet
from .compiling import compiled
from .matrix_products import multiply_run, ready
from .memory import call_row, load_f32, store_f16, store_f32
from .parameters import WHOLE, Layer, Parameters, row_at
from .residual import (
    add_bias,
    add_to_residual,
    cap_floats,
    clear,
    norm_scale,
    normalise,
    scale_floats,
)
from .row_kernels import call_add, call_products
from .simd.float_vectors import exp_shifted
from .weight_types import FLOATS, prepare_inputs
from .work_shares import UNIT, run_start, share_start


@compiled
def rotate(params: Parameters, x: int, cos: int, sin: int, first: int, end: int) -> None:
    """Turn neighbouring pairs (2i, 2i+1) of each head by the angles of a position; rows ``first`` to ``end``.

    Of a head the first `rotated` dimensions turn; at ``cos`` and ``sin`` stand half as many numbers.
    """
    head_dim, rotated = params.head_dim, params.rotated
    within = first % head_dim - 2
    for r in range(first, end, 2):
        within = within + 2 if within + 2 < head_dim else 0
        if within < rotated:
            a, b, c, s = load_f32(x, r), load_f32(x, r + 1), load_f32(cos, within // 2), load_f32(sin, within // 2)
            store_f32(x, r, a * c - b * s)
            store_f32(x, r + 1, a * s + b * c)


@compiled
def rotate_halves(params: Parameters, x: int, cos: int, sin: int) -> None:
    """Turn the pairs (i, i + rotated / 2) of one head by the angles of a position."""
    half = params.rotated // 2
    for i in range(half):
        a, b, c, s = load_f32(x, i), load_f32(x, i + half), load_f32(cos, i), load_f32(sin, i)
        store_f32(x, i, a * c - b * s)
        store_f32(x, i + half, a * s + b * c)


@compiled
def place_rows(params: Parameters, layer: Layer, x: int, first: int, end: int, slot: int) -> None:
    """Rows ``first`` to ``end`` of a new key or value into a slot, whose address is that of the first head.

    As floats of 2 or 4 bytes, or by ggml's from_float in runs of 32.
    """
    head_dim, size = params.head_dim, params.cache_row
    head_bytes = layer.slots * size
    if params.cache_type.kind == FLOATS:
        for head in range(first // head_dim, (end + head_dim - 1) // head_dim):
            start, place = head * head_dim, slot + head * head_bytes
            for r in range(max(first, start), min(end, start + head_dim)):
                if size == 2 * head_dim:
                    store_f16(place, r - start, load_f32(x, r))
                else:
                    store_f32(place, r - start, load_f32(x, r))
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
        if layer.cos.address:
            cos, sin = row_at(layer.cos, p), row_at(layer.sin, p)
            rotate(params, row_at(params.query, t), cos, sin, first_q, end_q)
            rotate(params, row_at(params.key, t), cos, sin, first, end)
        slot = p % layer.slots * params.cache_row
        place_rows(params, layer, row_at(params.key, t), first, end, row_at(params.keys, layer.index) + slot)
        place_rows(params, layer, row_at(params.value, t), first, end, row_at(params.values, layer.index) + slot)


@compiled
def norm_scales(params: Parameters, thread: int) -> None:
    """What divides a token's queries and keys where one norm goes over all heads, into `qk_scale`."""
    first, end = (
        share_start(params, params.tokens, thread, params.threads, 1),
        share_start(params, params.tokens, thread + 1, params.threads, 1),
    )
    heads, kv_heads = params.heads * params.head_dim, params.kv_heads * params.head_dim
    for t in range(first, end):
        into = row_at(params.qk_scale, t)
        for i in range(2):
            x, count = (row_at(params.query, t), heads) if i == 0 else (row_at(params.key, t), kv_heads)
            store_f32(into, i, norm_scale(params, x, count))
    meet(params, thread)


@compiled
def turn_head(params: Parameters, layer: Layer, x: int, weight: int, scale: float, position: int) -> None:
    """One head of a query or key, normalised if there is a norm, and turned.

    Args:
        weight: address of the norm's floats for this head, or 0.
        scale: what its values are multiplied with beside; 0 finds it of this head alone.
    """
    head_dim = params.head_dim
    if weight:
        factor = np.float32(scale)
        if factor == 0:
            factor = norm_scale(params, x, head_dim)
        for i in range(head_dim):
            store_f32(x, i, load_f32(x, i) * factor * load_f32(weight, i))
    if layer.cos.address:
        cos, sin = row_at(layer.cos, position), row_at(layer.sin, position)
        if params.halves:
            rotate_halves(params, x, cos, sin)
        else:
            rotate(params, x, cos, sin, 0, head_dim)


@compiled
def place_heads(params: Parameters, thread: int, layer: Layer) -> None:
    """`place_in_cache` for models whose queries and keys are finished head by head; all threads have written them."""
    heads, kv_heads, head_dim, size = params.heads, params.kv_heads, params.head_dim, params.cache_row
    meet(params, thread)
    whole = params.qk_norm == WHOLE
    if whole:
        norm_scales(params, thread)
    for unit in range(thread, params.tokens * (heads + kv_heads), params.threads):
        t, h = unit // (heads + kv_heads), unit % (heads + kv_heads)
        p, is_query, scale = params.position + t, h < heads, np.float32(0)
        weight, head = (layer.attn_q_norm, h) if is_query else (layer.attn_k_norm, h - heads)
        if whole:
            scale = load_f32(row_at(params.qk_scale, t), 0 if is_query else 1)
            weight += 4 * head * head_dim
        x = (row_at(params.query, t) if is_query else row_at(params.key, t)) + 4 * head * head_dim
        turn_head(params, layer, x, weight, scale, p)
        if is_query:
            if params.temperature != 0:
                longer = np.float32(1.0 + params.temperature * np.log(1.0 + p // params.temperature_length))
                scale_floats(params, x, head_dim, longer)
            continue
        slot, first = p % layer.slots * size, head * head_dim
        keys, values = row_at(params.keys, layer.index) + slot, row_at(params.values, layer.index) + slot
        place_rows(params, layer, row_at(params.key, t), first, first + head_dim, keys)
        place_rows(params, layer, row_at(params.value, t), first, first + head_dim, values)


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
    params: Parameters, thread: int, layer: Layer, heads: int, first: int, end: int, queries: int, keys: int,
    values: int, out: int,
) -> None:  # fmt: skip
    """Softmax attention of ``heads`` queries that share keys over positions ``first`` to ``end``; all by address.

    Positions lie in one run of slots, or in two where they pass the ring's end.
    """
    head_dim, size, slots, kind = params.head_dim, params.cache_row, layer.slots, params.cache_type
    scores, scratch = row_at(params.scores, thread), row_at(params.scratch, thread)
    x, stride, total = queries, 4 * head_dim, end - first
    if kind.kind != FLOATS:
        x, stride = row_at(params.queries, thread), params.queries.row_bytes // (params.heads // params.kv_heads)
        prepare_inputs(params, kind, queries, head_dim, heads, x, stride, 0)
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
        scale = params.attention_scale
        if params.attention_softcap != 0:
            cap_floats(params, mine, total, scale, params.attention_softcap)
            scale = np.float32(1)
        share = np.float32(1) / softmax(params, mine, total, scale)
        clear(params, target, head_dim)
        for part in range(2 if run < total else 1):
            begin, count, done = (slot, run, 0) if part == 0 else (0, total - run, run)
            weights = mine + 4 * (done - begin)
            call_add(params, kind, values, size, 0, begin, count, begin + count, weights, head_dim, target, scratch)
        for i in range(head_dim):
            store_f32(target, i, load_f32(target, i) * share)


@compiled
def heads_are_own(params: Parameters) -> int:
    """Whether (1 or 0) each thread has written all rows of some heads, and of the keys and values that they share."""
    kv_heads, threads = params.kv_heads, params.threads
    if params.tokens > 1 or params.head_wise or kv_heads % threads:
        return 0
    return 1 if kv_heads // threads * params.head_dim % UNIT == 0 else 0


@compiled
def attend(params: Parameters, thread: int, layer: Layer) -> None:
    """Each thread takes heads, those that share keys together, if that leaves no thread idle: of one token a run of
    them, its own if there are such; of several tokens in turn."""
    heads, head_dim, kv_heads = params.heads, params.head_dim, params.kv_heads
    group = heads // kv_heads
    some = group if params.tokens > 1 or kv_heads % params.threads == 0 else 1
    units = heads // some
    first, end, step = thread, units * params.tokens, params.threads
    if params.tokens == 1:
        first, step = share_start(params, units, thread, params.threads, 1), 1
        end = share_start(params, units, thread + 1, params.threads, 1)
    for unit in range(first, end, step):
        t, head = unit // units, unit % units * some
        p = params.position + t
        start, place = head // group * layer.slots * params.cache_row, 4 * head * head_dim
        attend_heads(
            params, thread, layer, some, max(0, p - layer.window + 1), p + 1, row_at(params.query, t) + place,
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
    add_bias(params, thread, layer.attn_q_bias, params.query.address, params.heads * params.head_dim)
    add_bias(params, thread, layer.attn_k_bias, params.key.address, params.kv_heads * params.head_dim)
    add_bias(params, thread, layer.attn_v_bias, params.value.address, params.kv_heads * params.head_dim)
    if params.head_wise:
        place_heads(params, thread, layer)
    else:
        place_in_cache(params, thread, layer)
    if not heads_are_own(params):
        meet(params, thread)
    attend(params, thread, layer)
    meet(params, thread)
    if params.kept_inputs:
        if tokens == 1:
            output_of_token(params, thread, layer)
        else:
            output_of_block(params, thread, layer)
        return
    x = params.attended.address
    ready(params, thread, layer.attn_output, x, prepared, 0)
    multiply_run(params, thread, layer.attn_output, 0, x, prepared, row, 0, tokens, params.added.address)
    add_bias(params, thread, layer.attn_output_bias, params.added.address, params.width)
    meet(params, thread)
    add_to_residual(params, thread, layer.attn_post_norm)
