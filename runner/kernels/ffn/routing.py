"""Which experts a token has, with what weights, and which tokens an expert."""

import numpy as np

from ..barrier import meet
from ..compiling import compiled
from ..matrix_products import multiply, ready
from ..memory import load_f32, load_i64, store_f32, store_i32, store_i64
from ..parameters import Layer, Parameters, row_at
from ..work_shares import token_start


@compiled
def choose_experts(params: Parameters, logits: int, choice: int, share: int) -> None:
    """The experts with the largest logits and the softmax over those, as Mixtral routes, or over all.

    Each is chosen once, whatever the logits are: lists of a block's tokens have room for one choice of an expert each.

    Args:
        logits, share: addresses of floats [E] and [K].
        choice: address of int64 [K].
    """
    for k in range(params.experts_per_token):
        best = -1
        for e in range(params.experts):
            taken = False
            for before in range(k):
                taken |= load_i64(choice, before) == e
            if not taken and (best < 0 or load_f32(logits, e) > load_f32(logits, best)):
                best = e
        store_i64(choice, k, best)
        store_f32(share, k, load_f32(logits, best))
    top, total = load_f32(share, 0), np.float32(0)
    for k in range(params.experts_per_token):
        store_f32(share, k, np.exp(load_f32(share, k) - top))
        total += load_f32(share, k)
    if not params.router_normalized:
        total = np.float32(0)
        for e in range(params.experts):
            total += np.exp(load_f32(logits, e) - top)
    for k in range(params.experts_per_token):
        store_f32(share, k, load_f32(share, k) / total)


@compiled
def route(params: Parameters, thread: int, layer: Layer) -> None:
    """Choose experts for the rows that the thread takes care of."""
    tensor = layer.router
    if tensor.address == 0:  # the buffers began with choice 0, share 1
        return
    first, end = token_start(params, thread), token_start(params, thread + 1)
    logits, prepared = row_at(params.router_logits, thread), params.prepared
    ready(params, thread, tensor, row_at(params.normed, thread if params.tokens == 1 else 0), prepared, 0)
    for r in range(first, end):
        x = row_at(params.normed, r)
        multiply(params, thread, tensor, 0, 0, 0, params.experts, x, prepared, r, 0, 1, logits, 1, 0)
        choose_experts(params, logits, row_at(params.choice, r), row_at(params.share, r))
    if params.tokens > 1:
        meet(params, thread)


@compiled
def choose_tokens(params: Parameters, thread: int, expert: int) -> int:
    """List the tokens of the block that have chosen ``expert``; returns how many."""
    per_token, chosen, count = params.experts_per_token, row_at(params.chosen_tokens, thread), 0
    for t in range(params.tokens):
        for k in range(per_token):
            if load_i64(params.choice.address, t * per_token + k) == expert:
                store_i32(chosen, count, t)
                count += 1
    return count


@compiled
def share_for(params: Parameters, row: int, expert: int) -> np.float32:
    """The weight of an expert for a token, by its row of the buffers."""
    for k in range(params.experts_per_token):
        if load_i64(row_at(params.choice, row), k) == expert:
            return load_f32(row_at(params.share, row), k)
    return np.float32(0)
