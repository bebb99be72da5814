"""The FFN of one token, neuron by neuron: found by predictor or gate, shared out evenly, summed in a fixed order.

A pass drops from the list what can add nothing: after the gate those whose gate is not positive, after up those whose
activation is zero. Dense mode drops none, and reads every row.
"""

from typing import Any

from .access import at, number, tensor_of
from .compiling import compiled
from .elementwise import activate, keep_nonzero, keep_positive
from .finding import find, foreseen, predictor_hidden, shift_gates, shift_ups
from .leaves import add_whole, first_leaf, join_sums, leaf_start, slot
from .native import load_f32, load_i32, load_i64, store_i32
from .parts import add_listed, clear, gather_all, multiply, ready, tally
from .tables import (
    ACTIVATION,
    ADDRESS,
    CHOICE,
    CHOSEN,
    DENSE,
    DOWN,
    DOWN_ROWS,
    ENDS,
    FC1,
    FIRED,
    FOUND,
    GATE,
    GATE_ROWS,
    GATES,
    LEAVES,
    LINE,
    LISTED,
    MINE,
    NEURONS,
    NORMED,
    PREDICTED,
    PREPARED,
    SHARE,
    UP,
    UP_ROWS,
    UPS,
    WIDTH,
    X,
)

_NO_NEURON = 2**31 - 1


@compiled
def ffn_of_token(m: int, thread: int, threads: int, layer: int, mode: int, audit: int) -> None:
    """x += FFN(normed) of one token, in ``mode``; with ``audit``, neurons that were not predicted are looked at too."""
    form = 0
    if mode == PREDICTED and load_i64(tensor_of(m, layer, FC1), ADDRESS) != 0:
        form = predictor_hidden(m, thread, threads, layer)
        gather_all(m, thread, threads)
    if mode != DENSE:
        form = find(m, thread, threads, layer, mode, audit, form)
        gather_all(m, thread, threads)
    for k in range(number(m, CHOSEN)):
        form = _activate(m, thread, threads, layer, k, mode, form)
    _sum(m, thread, threads, layer, mode)
    gather_all(m, thread, threads)
    add_whole(m, thread, threads, at(m, X, thread))


@compiled
def take_share(
    listed: int, listed_step: int, found: int, found_step: int, thread: int, threads: int, mine: int, ends: int
) -> Any:
    """Of what all threads have listed, in their order, the leaves of one thread; returns how many neurons.

    Args:
        listed, found: addresses of the first thread's int32 list and of its length; steps, in bytes, lead to others'.
        mine: address of its own list.
        ends: of int32 [LEAVES]: for each of its leaves, the neuron that the next one begins with.
    """
    total = 0
    for other in range(threads):
        total += load_i32(found + other * found_step, 0)
    leaf, leaves = first_leaf(thread, threads), first_leaf(thread + 1, threads) - first_leaf(thread, threads)
    low, high = leaf_start(total, leaf), leaf_start(total, leaf + leaves)
    before, taken = 0, 0
    for other in range(threads):
        length = load_i32(found + other * found_step, 0)
        for i in range(max(low - before, 0), min(high - before, length)):
            store_i32(mine, taken, load_i32(listed + other * listed_step, i))
            taken += 1
        before += length
    for i in range(leaves):
        end = leaf_start(total, leaf + i + 1) - low
        store_i32(ends, i, load_i32(mine, end) if end < taken else _NO_NEURON)
    return taken


@compiled
def end_leaves(mine: int, left: int, ends: int, leaves: int) -> None:
    """Turn the neurons that ``ends`` has into places in what is left of a thread's list."""
    place = 0
    for i in range(leaves):
        while place < left and load_i32(mine, place) < load_i32(ends, i):
            place += 1
        store_i32(ends, i, place)


@compiled
def _activate(m: int, thread: int, threads: int, layer: int, k: int, mode: int, form: int) -> Any:
    """Activations of this thread's neurons of chosen expert ``k`` into GATES; which of them count into MINE."""
    neurons, x, expert = number(m, NEURONS), at(m, NORMED, thread), load_i64(at(m, CHOICE, thread), k)
    gate, up = at(m, GATES, k), at(m, UPS, k)
    leaf, end_leaf = first_leaf(thread, threads), first_leaf(thread + 1, threads)
    listed, first, ends = 0, leaf_start(neurons, leaf), at(m, ENDS, thread) + 4 * k * LEAVES
    some = leaf_start(neurons, end_leaf) - first
    if mode != DENSE:
        listed, first = at(m, MINE, thread) + 4 * k * neurons, 0
        lists, lengths = at(m, LISTED, 0) + 4 * k * neurons, at(m, FOUND, 0) + 4 * k * LINE
        steps = at(m, LISTED, 1) - at(m, LISTED, 0), at(m, FOUND, 1) - at(m, FOUND, 0)
        some = take_share(lists, steps[0], lengths, steps[1], thread, threads, listed, ends)
    if mode == DENSE or foreseen(m, layer, expert, mode):
        tensor = tensor_of(m, layer, GATE)
        form = ready(m, thread, threads, 1, tensor, x, PREPARED, form)
        multiply(m, thread, tensor, expert, listed, first, some, x, PREPARED, thread, 0, 1, gate, 1, 0)
        shift_gates(m, layer, gate, listed, first, some)
        tally(m, thread, layer, GATE_ROWS, some)
        if mode != DENSE:
            some = keep_positive(listed, some, gate, 1)
    tensor = tensor_of(m, layer, UP)
    form = ready(m, thread, threads, 1, tensor, x, PREPARED, form)
    multiply(m, thread, tensor, expert, listed, first, some, x, PREPARED, thread, 0, 1, up, 1, 0)
    shift_ups(m, layer, up, listed, first, some)
    tally(m, thread, layer, UP_ROWS, some)
    share = load_f32(at(m, SHARE, thread), k)
    tally(m, thread, layer, FIRED, activate(number(m, ACTIVATION), listed, first, some, gate, up, 1, share))
    if mode == DENSE:
        for i in range(end_leaf - leaf):
            store_i32(ends, i, leaf_start(neurons, leaf + i + 1))
    else:
        some = keep_nonzero(listed, some, gate, 1)
        end_leaves(listed, some, ends, end_leaf - leaf)
    tally(m, thread, layer, DOWN_ROWS, some)
    return form


@compiled
def _sum(m: int, thread: int, threads: int, layer: int, mode: int) -> None:
    """What this thread's neurons contribute, leaf by leaf; all chosen experts' in one tree."""
    first, end, neurons, held = first_leaf(thread, threads), first_leaf(thread + 1, threads), number(m, NEURONS), 0
    start, tensor = leaf_start(neurons, first) if mode == DENSE else 0, tensor_of(m, layer, DOWN)
    for leaf in range(first, end):
        into = slot(m, thread, held)
        clear(into, number(m, WIDTH))
        for k in range(number(m, CHOSEN)):
            ends = at(m, ENDS, thread) + 4 * k * LEAVES
            listed = 0 if mode == DENSE else at(m, MINE, thread) + 4 * k * neurons
            begin = start if leaf == first else load_i32(ends, leaf - first - 1)
            count, last = load_i32(ends, leaf - first) - begin, load_i32(ends, end - first - 1)
            expert = load_i64(at(m, CHOICE, thread), k)
            add_listed(m, thread, tensor, expert, listed, begin, count, last, at(m, GATES, k), into)
        held = join_sums(m, thread, first, leaf, held + 1)
