"""Which neurons of a token's FFN may fire: those that its predictor names, or else those whose gate is open."""

from typing import Any

import numpy as np

from .access import at, number, tensor_of
from .compiling import compiled
from .elementwise import DRELU, activation_of, list_above, list_positive, shift
from .native import load_f32, load_i64, store_f32, store_i32
from .parts import multiply_run, ready, run_of, tally
from .tables import (
    ACTIVATION,
    ADDRESS,
    CHOICE,
    CHOSEN,
    FC1,
    FC2,
    FOUND,
    GATE,
    GATE_ROWS,
    GATES,
    HIDDEN,
    LINE,
    LISTED,
    LOGITS,
    MISSED,
    NEURONS,
    NORMED,
    NORMED_PREDICTORS,
    PREDICTED,
    PREDICTED_ROWS,
    PREPARED,
    PREPARED_HIDDEN,
    ROWS,
    SHIFTS,
    THRESHOLDS,
    UP,
    UPS,
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
def predictor_hidden(m: int, thread: int, threads: int, layer: int) -> Any:
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
def find(m: int, thread: int, threads: int, layer: int, mode: int, audit: int, form: int) -> Any:
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
