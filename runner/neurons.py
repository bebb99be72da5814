"""The FFN of one token, neuron by neuron: found by predictor or gate, shared out evenly, summed by each thread.

A pass drops from the list what can add nothing: after the gate those whose gate is not positive, after up those whose
activation is zero. Dense mode drops none, and reads every row.
"""

from typing import Any

import numpy as np

from .access import at, number, tensor_of
from .compiling import compiled
from .kernels import DRELU, activate, activation_of, keep_nonzero, keep_positive, list_above, list_positive, shift
from .native import load_f32, load_i32, load_i64, store_f32, store_i32
from .parts import add_floats, add_listed, clear, gather_all, multiply, multiply_run, ready, run_of, tally
from .tables import (
    ACTIVATION,
    ADDRESS,
    CHOICE,
    CHOSEN,
    DENSE,
    DOWN,
    DOWN_ROWS,
    FC1,
    FC2,
    FIRED,
    FOUND,
    GATE,
    GATE_ROWS,
    GATES,
    HIDDEN,
    LINE,
    LISTED,
    LOGITS,
    MINE,
    MISSED,
    NEURONS,
    NORMED,
    NORMED_PREDICTORS,
    PARTIAL,
    PREDICTED,
    PREDICTED_ROWS,
    PREPARED,
    PREPARED_HIDDEN,
    ROWS,
    SHARE,
    SHIFTS,
    THRESHOLDS,
    UP,
    UP_ROWS,
    UPS,
    WIDTH,
    X,
)


@compiled
def shift_gates(m: int, layer: int, gate: int, listed: int, first: int, count: int) -> None:
    """Close the gates that the layer's shift closes."""
    least = load_f32(at(m, SHIFTS, 0), layer)
    if least > 0:
        shift(gate, listed, first, count, least)


@compiled
def shift_ups(m: int, layer: int, up: int, listed: int, first: int, count: int) -> None:
    """The same of ups, which only dReLU cuts off."""
    if number(m, ACTIVATION) == DRELU:
        shift_gates(m, layer, up, listed, first, count)


@compiled
def foreseen(m: int, layer: int, expert: int, mode: int) -> Any:
    """Whether an FFN's neurons are found by its predictor."""
    there = mode == PREDICTED and load_i64(tensor_of(m, layer, FC1), ADDRESS) != 0
    return there and not np.isnan(load_f32(at(m, THRESHOLDS, layer), expert))


@compiled
def ffn_of_token(m: int, thread: int, threads: int, layer: int, mode: int, audit: int) -> None:
    """x += FFN(normed) of one token, in ``mode``; with ``audit``, neurons that were not predicted are looked at too."""
    form, width, partial = 0, number(m, WIDTH), at(m, PARTIAL, thread)
    if mode == PREDICTED and load_i64(tensor_of(m, layer, FC1), ADDRESS) != 0:
        form = _predictor_hidden(m, thread, threads, layer)
        gather_all(m, thread, threads)
    if mode != DENSE:
        form = _find(m, thread, threads, layer, mode, audit, form)
        gather_all(m, thread, threads)
    clear(partial, width)
    for k in range(number(m, CHOSEN)):
        form = _run(m, thread, threads, layer, k, mode, form)
    gather_all(m, thread, threads)
    for other in range(threads):
        add_floats(at(m, PARTIAL, other), at(m, X, thread), width)


@compiled
def _predictor_hidden(m: int, thread: int, threads: int, layer: int) -> Any:
    """relu(fc1 . x) of every chosen expert's predictor; this thread's rows. Returns the form of the normed input."""
    tensor, normed = tensor_of(m, layer, FC1), number(m, NORMED_PREDICTORS)
    x = at(m, NORMED if normed else X, thread)
    form = ready(m, thread, threads, 1, tensor, x, PREPARED, 0)
    first, end = run_of(load_i64(tensor, ROWS), thread, threads)
    for k in range(number(m, CHOSEN)):
        out, expert = at(m, HIDDEN, k), load_i64(at(m, CHOICE, thread), k)
        multiply_run(m, thread, threads, tensor, expert, x, PREPARED, thread, 0, 1, out)
        for r in range(first, end):
            store_f32(out, r, max(load_f32(out, r), np.float32(0)))
    return form if normed else 0


@compiled
def _find(m: int, thread: int, threads: int, layer: int, mode: int, audit: int, form: int) -> Any:
    """List, of this thread's run of neurons, those whose predictor logit, or else whose gate, is large enough."""
    first, end = run_of(number(m, NEURONS), thread, threads)
    x = at(m, NORMED, thread)
    for k in range(number(m, CHOSEN)):
        expert = load_i64(at(m, CHOICE, thread), k)
        listed, gate = at(m, LISTED, thread) + 4 * k * number(m, NEURONS), at(m, GATES, k)
        known = foreseen(m, layer, expert, mode)
        if known:
            tensor, hidden, logits = tensor_of(m, layer, FC2), at(m, HIDDEN, k), at(m, LOGITS, k)
            ready(m, thread, threads, 1, tensor, hidden, PREPARED_HIDDEN, 0)
            multiply_run(m, thread, threads, tensor, expert, hidden, PREPARED_HIDDEN, thread, 0, 1, logits)
            threshold = load_f32(at(m, THRESHOLDS, layer), expert)
            found = list_above(logits, 1, first, end, threshold, listed)
            tally(m, thread, layer, PREDICTED_ROWS, found)
        if audit or not known:
            tensor = tensor_of(m, layer, GATE)
            form = ready(m, thread, threads, 1, tensor, x, PREPARED, form)
            multiply_run(m, thread, threads, tensor, expert, x, PREPARED, thread, 0, 1, gate)
            shift_gates(m, layer, gate, 0, first, end - first)
        if not known:
            tally(m, thread, layer, GATE_ROWS, end - first)
            found = list_positive(gate, 1, first, end, listed)
        elif audit:
            tensor, up = tensor_of(m, layer, UP), at(m, UPS, k)
            form = ready(m, thread, threads, 1, tensor, x, PREPARED, form)
            multiply_run(m, thread, threads, tensor, expert, x, PREPARED, thread, 0, 1, up)
            shift_ups(m, layer, up, 0, first, end - first)
            missed = count_missed(number(m, ACTIVATION), first, end, gate, up, logits, threshold)
            tally(m, thread, layer, MISSED, missed)
        store_i32(at(m, FOUND, thread), k * LINE, found)
    return form


@compiled
def count_missed(activation: int, first: int, end: int, gate: int, up: int, logits: int, threshold: float) -> Any:
    """Neurons that fire although their logit is below the threshold."""
    missed = 0
    for j in range(first, end):
        silent = load_f32(logits, j) < threshold
        missed += silent and activation_of(activation, load_f32(gate, j), load_f32(up, j)) != 0
    return missed


@compiled
def take_share(listed: int, listed_step: int, found: int, found_step: int, thread: int, threads: int, mine: int) -> Any:
    """Of what all threads have listed, in their order, an even share; returns how many.

    Args:
        listed, found: addresses of the first thread's int32 list and of its length; steps, in bytes, lead to others'.
    """
    total = 0
    for other in range(threads):
        total += load_i32(found + other * found_step, 0)
    low, high = total * thread // threads, total * (thread + 1) // threads
    before, taken = 0, 0
    for other in range(threads):
        length = load_i32(found + other * found_step, 0)
        for i in range(max(low - before, 0), min(high - before, length)):
            store_i32(mine, taken, load_i32(listed + other * listed_step, i))
            taken += 1
        before += length
    return taken


@compiled
def _run(m: int, thread: int, threads: int, layer: int, k: int, mode: int, form: int) -> Any:
    """Add what this thread's neurons of chosen expert ``k`` contribute to its accumulator."""
    neurons, x, expert = number(m, NEURONS), at(m, NORMED, thread), load_i64(at(m, CHOICE, thread), k)
    gate, up = at(m, GATES, k), at(m, UPS, k)
    first, end = run_of(neurons, thread, threads)
    listed, some = 0, end - first
    if mode != DENSE:
        listed, first = at(m, MINE, thread), 0
        lists, lengths = at(m, LISTED, 0) + 4 * k * neurons, at(m, FOUND, 0) + 4 * k * LINE
        steps = at(m, LISTED, 1) - at(m, LISTED, 0), at(m, FOUND, 1) - at(m, FOUND, 0)
        some = take_share(lists, steps[0], lengths, steps[1], thread, threads, listed)
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
    if mode != DENSE:
        some = keep_nonzero(listed, some, gate, 1)
    tally(m, thread, layer, DOWN_ROWS, some)
    add_listed(m, thread, tensor_of(m, layer, DOWN), expert, listed, first, some, gate, at(m, PARTIAL, thread))
    return form
