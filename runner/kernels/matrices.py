"""The FFN with its down matrix as llama.cpp stores it: all activations first, then the matrix product."""

from typing import Any

from .access import at, number, tensor_of
from .chosen import choose_tokens, share_for
from .compiling import compiled
from .elementwise import SWIGLU, activate, swish_all
from .native import load_f32, load_i32, load_i64, store_f32, store_i32
from .parts import (
    add_floats,
    add_to_residual,
    clear,
    gather_all,
    multiply,
    multiply_run,
    ready,
    run_of,
    tally,
)
from .tables import (
    ACTIVATION,
    ADDED,
    CHOICE,
    CHOSEN,
    DOWN,
    DOWN_ROWS,
    EXPERTS,
    FIRED,
    GATE,
    GATE_ROWS,
    GATES,
    NEURONS,
    NORMED,
    OTHER,
    PREPARED,
    PREPARED_HIDDEN,
    SHARE,
    TOKENS,
    UP,
    UP_ROWS,
    UPS,
    WIDTH,
)


@compiled
def ffn_by_matrix(m: int, thread: int, threads: int, layer: int, tokens: int) -> None:
    """x += FFN(normed) of one token or a block; every row is read."""
    form, fresh, chosen = 0, 1, at(m, TOKENS, thread)
    for slot in range(number(m, CHOSEN) if tokens == 1 else max(1, number(m, EXPERTS))):
        expert, some = slot, 1
        if tokens == 1:
            expert = load_i64(at(m, CHOICE, thread), slot)
            store_i32(chosen, 0, 0)
        else:
            some = choose_tokens(at(m, CHOICE, 0), number(m, CHOSEN), tokens, expert, chosen)
        if some:
            form = _one(m, thread, threads, layer, tokens, expert, some, form, fresh)
            fresh = 0
    gather_all(m, thread, threads)
    add_to_residual(m, thread, threads, tokens)


@compiled
def _one(
    m: int, thread: int, threads: int, layer: int, tokens: int, expert: int, some: int, form: int, fresh: int
) -> Any:
    """Add what one FFN makes of its tokens to ``added``: this thread's neurons, then its rows of the down matrix."""
    neurons, row, chosen = number(m, NEURONS), thread if tokens == 1 else 0, at(m, TOKENS, thread)
    first, end = run_of(neurons, thread, threads)
    x, gate, up = at(m, NORMED, row), at(m, GATES, 0), at(m, UPS, 0)
    for role in (GATE, UP):
        tensor = tensor_of(m, layer, role)
        form = ready(m, thread, threads, tokens, tensor, x, PREPARED, form)
        out = gate if role == GATE else up
        multiply(m, thread, tensor, expert, 0, first, end - first, x, PREPARED, row, chosen, some, out, 1, neurons)
    for what in (GATE_ROWS, UP_ROWS, DOWN_ROWS):
        tally(m, thread, layer, what, some * (end - first))
    for i in range(some):
        t = load_i32(chosen, i)
        place, whose = 4 * (t * neurons + first), thread if tokens == 1 else t
        share = share_for(at(m, CHOICE, whose), at(m, SHARE, whose), number(m, CHOSEN), expert)
        fired = activate_run(number(m, ACTIVATION), gate + place, up + place, end - first, share)
        tally(m, thread, layer, FIRED, fired)
    gather_all(m, thread, threads)
    _down(m, thread, threads, layer, tokens, expert, some, fresh)
    return form


@compiled
def _down(m: int, thread: int, threads: int, layer: int, tokens: int, expert: int, some: int, fresh: int) -> None:
    width, row, chosen, gate = number(m, WIDTH), thread if tokens == 1 else 0, at(m, TOKENS, thread), at(m, GATES, 0)
    tensor, several = tensor_of(m, layer, DOWN), number(m, EXPERTS) > 0
    first, end = run_of(width, thread, threads)
    ready(m, thread, threads, tokens, tensor, gate, PREPARED_HIDDEN, 0)
    into = at(m, OTHER if several else ADDED, 0)
    multiply_run(m, thread, threads, tensor, expert, gate, PREPARED_HIDDEN, row, chosen, some, into)
    if not several:
        return
    if fresh:  # all have met: nobody adds attention's part to the residual any more
        for t in range(tokens):
            clear(at(m, ADDED, t) + 4 * first, end - first)
    for i in range(some):
        place = 4 * (load_i32(chosen, i) * width + first)
        add_floats(into + place, at(m, ADDED, 0) + place, end - first)
    gather_all(m, thread, threads)


@compiled
def activate_run(activation: int, gate: int, up: int, size: int, share: float) -> Any:
    """Turn neighbouring gates into activations times ``share``; returns how many are not zero."""
    if activation != SWIGLU:
        return activate(activation, 0, 0, size, gate, up, 1, share)
    swish_all(gate, up, size)
    if share != 1:
        for i in range(size):
            store_f32(gate, i, load_f32(gate, i) * share)
    return size
