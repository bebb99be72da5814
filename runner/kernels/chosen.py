"""Which tokens of a block an FFN has, with what shares, and for which of them a neuron may fire. All by address."""

from typing import Any

import numpy as np

from .compiling import compiled
from .native import load_f32, load_i32, load_i64, store_i32


@compiled
def choose_tokens(choice: int, per_token: int, tokens: int, expert: int, chosen: int) -> Any:
    """List, as int32, the tokens that have chosen ``expert``; returns how many.

    Args:
        choice: int64 [tokens, per_token].
    """
    count = 0
    for t in range(tokens):
        for k in range(per_token):
            if load_i64(choice, t * per_token + k) == expert:
                store_i32(chosen, count, t)
                count += 1
    return count


@compiled
def share_for(choice: int, share: int, per_token: int, expert: int) -> Any:
    """What share an expert has, of the row of a token."""
    for k in range(per_token):
        if load_i64(choice, k) == expert:
            return load_f32(share, k)
    return np.float32(0)


@compiled
def chosen_above(chosen: int, count: int, values: int, threshold: float, listed: int) -> Any:
    """List the chosen tokens whose float reaches the threshold; returns how many."""
    kept = 0
    for i in range(count):
        t = load_i32(chosen, i)
        store_i32(listed, kept, t)
        kept += load_f32(values, t) >= threshold
    return kept


@compiled
def chosen_positive(chosen: int, count: int, values: int, listed: int) -> Any:
    """List the chosen tokens whose float is above zero; returns how many."""
    kept = 0
    for i in range(count):
        t = load_i32(chosen, i)
        store_i32(listed, kept, t)
        kept += load_f32(values, t) > 0
    return kept
