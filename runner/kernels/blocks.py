"""The FFN of a block of tokens with a transposed down matrix: gates and ups by neuron, then sums by column.

A neuron's row is multiplied with the tokens for which it may fire only. The down product is sparse too: some rows are
decoded into a panel that stays in the cache, and each token adds those whose neuron fired for it.
"""

from typing import Any

import numpy as np

from .access import at, number, tensor_of, type_field
from .chosen import choose_tokens, chosen_above, chosen_positive, share_for
from .compiling import compiled
from .elementwise import SWIGLU, UNIT, activation_of, share_of
from .finding import foreseen, shift_gates, shift_ups
from .float_tiles import blend
from .native import call_add, load_f32, load_i32, load_i64, store_f32, store_i32
from .parts import add_to_residual, clear, gather_all, multiply, multiply_run, ready, run_of, tally
from .rows import ADD, TO_FLOAT
from .tables import (
    ACTIVATION,
    ADDED,
    ADDRESS,
    BLOCK,
    CHOICE,
    CHOSEN,
    DENSE,
    DOWN,
    DOWN_ROWS,
    EXPERT_BYTES,
    EXPERTS,
    FC1,
    FC2,
    FIRED,
    FIRING,
    FIRING_COUNTS,
    FIRING_SHARES,
    GATE,
    GATE_ROWS,
    GATES,
    HIDDEN,
    LOGITS,
    MISSED,
    NEURONS,
    NORMED,
    NORMED_PREDICTORS,
    PANEL,
    PANEL_COLUMNS,
    PANEL_ROWS,
    PREDICTED_ROWS,
    PREPARED,
    PREPARED_HIDDEN,
    ROW_BYTES,
    ROWS,
    SCRATCH,
    SHARE,
    THRESHOLDS,
    TOKENS,
    TYPE,
    TYPES,
    UP,
    UP_ROWS,
    UPS,
    WIDTH,
    X,
)

_ONE = 100  # where a weight of 1 stands in a thread's scratch, in floats


@compiled
def ffn_of_block(m: int, thread: int, threads: int, layer: int, tokens: int, mode: int, audit: int) -> None:
    """x += FFN(normed) of a block of tokens, in ``mode``; with ``audit`` all neurons are looked at."""
    width, form = number(m, WIDTH), 0
    unit = PANEL_COLUMNS if width % PANEL_COLUMNS == 0 else UNIT
    first, end = share_of(width, thread, threads, unit), share_of(width, thread + 1, threads, unit)
    for t in range(tokens):
        clear(at(m, ADDED, t) + 4 * first, end - first)
    for expert in range(max(1, number(m, EXPERTS))):
        some = choose_tokens(at(m, CHOICE, 0), number(m, CHOSEN), tokens, expert, at(m, TOKENS, thread))
        if some:
            form = _activations(m, thread, threads, layer, tokens, expert, some, mode, audit, form)
            gather_all(m, thread, threads)
            _sum_rows(m, thread, layer, expert, some, first, end)
            gather_all(m, thread, threads)
    add_to_residual(m, thread, threads, tokens)


@compiled
def _activations(
    m: int, thread: int, threads: int, layer: int, tokens: int, expert: int, some: int, mode: int, audit: int, form: int
) -> Any:
    """Activations of this thread's neurons for the chosen tokens into GATES, zero where they do not fire."""
    first, end = run_of(number(m, NEURONS), thread, threads)
    x, chosen, known = at(m, NORMED, 0), at(m, TOKENS, thread), foreseen(m, layer, expert, mode)
    gate, up, activation = at(m, GATES, 0), at(m, UPS, 0), number(m, ACTIVATION)
    if known:
        form = _logits(m, thread, threads, layer, tokens, expert, some, form)
    for role in (GATE, UP):
        tensor = tensor_of(m, layer, role)
        form = ready(m, thread, threads, tokens, tensor, x, PREPARED, form)
        if mode == DENSE or audit or (role == GATE and not known):
            out, read = gate if role == GATE else up, GATE_ROWS if role == GATE else UP_ROWS
            multiply(m, thread, tensor, expert, 0, first, end - first, x, PREPARED, 0, chosen, some, out, BLOCK, 1)
            if role == GATE:
                shift_gates(m, layer, out, 0, BLOCK * first, BLOCK * (end - first))
            else:
                shift_ups(m, layer, out, 0, BLOCK * first, BLOCK * (end - first))
            tally(m, thread, layer, read, some * (end - first))
        elif role == GATE:
            _predicted_gates(m, thread, layer, expert, some, first, end)
        else:
            _open_ups(m, thread, layer, expert, some, first, end)
    if audit and known:
        threshold = load_f32(at(m, THRESHOLDS, layer), expert)
        listed, predicted = chosen + 4 * BLOCK, 0
        for j in range(first, end):
            predicted += chosen_above(chosen, some, at(m, LOGITS, 0) + 4 * BLOCK * j, threshold, listed)
        tally(m, thread, layer, PREDICTED_ROWS, predicted)
        missed = drop_missed(activation, first, end, chosen, some, gate, up, at(m, LOGITS, 0), threshold)
        tally(m, thread, layer, MISSED, missed)
    fired = 0
    for j in range(first, end):
        place = 4 * BLOCK * j
        fired += activate_tokens(
            activation,
            chosen,
            some,
            gate + place,
            up + place,
            at(m, CHOICE, 0),
            at(m, SHARE, 0),
            number(m, CHOSEN),
            expert,
        )
    tally(m, thread, layer, FIRED, fired)
    tally(m, thread, layer, DOWN_ROWS, some * (end - first) if mode == DENSE else fired)
    return form


@compiled
def _logits(m: int, thread: int, threads: int, layer: int, tokens: int, expert: int, some: int, form: int) -> Any:
    """The predictor's logits of this thread's neurons into LOGITS; returns the form of the normed inputs."""
    tensor, normed, chosen = tensor_of(m, layer, FC1), number(m, NORMED_PREDICTORS), at(m, TOKENS, thread)
    x, hidden, rank = at(m, NORMED if normed else X, 0), at(m, HIDDEN, 0), load_i64(tensor, ROWS)
    if not normed and form != 0:
        gather_all(m, thread, threads)
    form = ready(m, thread, threads, tokens, tensor, x, PREPARED, form if normed else 0)
    multiply_run(m, thread, threads, tensor, expert, x, PREPARED, 0, chosen, some, hidden)
    first, end = run_of(rank, thread, threads)
    for t in range(tokens):
        for r in range(first, end):
            store_f32(hidden, t * rank + r, max(load_f32(hidden, t * rank + r), np.float32(0)))
    gather_all(m, thread, threads)
    tensor = tensor_of(m, layer, FC2)
    first, end = run_of(number(m, NEURONS), thread, threads)
    ready(m, thread, threads, tokens, tensor, hidden, PREPARED_HIDDEN, 0)
    multiply(
        m, thread, tensor, expert, 0, first, end - first, hidden, PREPARED_HIDDEN, 0, chosen, some, at(m, LOGITS, 0),
        BLOCK, 1,
    )  # fmt: skip
    return form if normed else 0


@compiled
def _predicted_gates(m: int, thread: int, layer: int, expert: int, some: int, first: int, end: int) -> None:
    """Gates of the tokens for which a neuron is predicted, zero for the others."""
    tensor, x, chosen = tensor_of(m, layer, GATE), at(m, NORMED, 0), at(m, TOKENS, thread)
    listed, threshold = chosen + 4 * BLOCK, load_f32(at(m, THRESHOLDS, layer), expert)
    gate, logits, all_found = at(m, GATES, 0), at(m, LOGITS, 0), 0
    for j in range(first, end):
        found = chosen_above(chosen, some, logits + 4 * BLOCK * j, threshold, listed)
        all_found += found
        clear(gate + 4 * BLOCK * j, BLOCK)
        if found:
            multiply(m, thread, tensor, expert, 0, j, 1, x, PREPARED, 0, listed, found, gate, BLOCK, 1)
            shift_gates(m, layer, gate, 0, BLOCK * j, BLOCK)
    tally(m, thread, layer, PREDICTED_ROWS, all_found)
    tally(m, thread, layer, GATE_ROWS, all_found)


@compiled
def _open_ups(m: int, thread: int, layer: int, expert: int, some: int, first: int, end: int) -> None:
    """Ups of the tokens whose gate is open."""
    tensor, x, chosen, all_found = tensor_of(m, layer, UP), at(m, NORMED, 0), at(m, TOKENS, thread), 0
    listed = chosen + 4 * BLOCK
    for j in range(first, end):
        found = chosen_positive(chosen, some, at(m, GATES, 0) + 4 * BLOCK * j, listed)
        all_found += found
        if found:
            multiply(m, thread, tensor, expert, 0, j, 1, x, PREPARED, 0, listed, found, at(m, UPS, 0), BLOCK, 1)
            shift_ups(m, layer, at(m, UPS, 0), 0, BLOCK * j, BLOCK)
    tally(m, thread, layer, UP_ROWS, all_found)


@compiled
def drop_missed(
    activation: int, first: int, end: int, chosen: int, some: int, gate: int, up: int, logits: int, threshold: float
) -> Any:
    """Silence neurons that were not predicted; returns how many would have fired."""
    missed = 0
    for j in range(first, end):
        for i in range(some):
            place = BLOCK * j + load_i32(chosen, i)
            if load_f32(logits, place) < threshold:
                missed += activation_of(activation, load_f32(gate, place), load_f32(up, place)) != 0
                store_f32(gate, place, 0.0)
    return missed


@compiled
def activate_tokens(
    activation: int, chosen: int, some: int, gate: int, up: int, choice: int, share: int, per_token: int, expert: int
) -> Any:
    """Turn a neuron's gates into activations times the tokens' shares; returns how many are not zero.

    A shut gate needs no up.
    """
    fired = 0
    for i in range(some):
        t = load_i32(chosen, i)
        g, h = load_f32(gate, t), np.float32(0)
        if g > 0 or activation == SWIGLU:
            part = share_for(choice + 8 * per_token * t, share + 4 * per_token * t, per_token, expert)
            h = activation_of(activation, g, load_f32(up, t)) * part
        store_f32(gate, t, h)
        fired += h != 0
    return fired


@compiled
def _sum_rows(m: int, thread: int, layer: int, expert: int, some: int, first: int, end: int) -> None:
    """added += activations x down rows, for the columns from ``first`` to ``end``."""
    tensor, types, neurons = tensor_of(m, layer, DOWN), at(m, TYPES, 0), number(m, NEURONS)
    type_id, size = load_i64(tensor, TYPE), load_i64(tensor, ROW_BYTES)
    base = load_i64(tensor, ADDRESS) + expert * load_i64(tensor, EXPERT_BYTES)
    add, function = type_field(types, type_id, ADD), type_field(types, type_id, TO_FLOAT)
    panel, scratch, chosen = at(m, PANEL, thread), at(m, SCRATCH, thread), at(m, TOKENS, thread)
    lists, shares, lengths = at(m, FIRING, thread), at(m, FIRING_SHARES, thread), at(m, FIRING_COUNTS, thread)
    for start in range(0, neurons, PANEL_ROWS):
        rows = min(PANEL_ROWS, neurons - start)
        used = list_firing(at(m, GATES, 0) + 4 * BLOCK * start, rows, chosen, some, lists, shares, lengths)
        for c in range(first, end, PANEL_COLUMNS):
            width = min(PANEL_COLUMNS, end - c)
            for r in range(rows):
                if used >> r & 1:
                    row = base + (start + r) * size + size * c // number(m, WIDTH)
                    decode_part(add, function, row, width, panel + 4 * PANEL_COLUMNS * r, scratch)
            for i in range(some):
                place = 4 * PANEL_ROWS * i
                out = at(m, ADDED, load_i32(chosen, i)) + 4 * c
                add_panel(panel, lists + place, shares + place, load_i32(lengths, i), out, width)


@compiled
def list_firing(h: int, rows: int, chosen: int, some: int, lists: int, shares: int, lengths: int) -> Any:
    """For each chosen token, which of the first ``rows`` neurons of ``h`` fire, how much, and how many; a bit a row."""
    used = 0
    for i in range(some):
        store_i32(lengths, i, 0)
    for r in range(rows):
        fires = False
        for i in range(some):
            value, length = load_f32(h, BLOCK * r + load_i32(chosen, i)), load_i32(lengths, i)
            store_i32(lists, PANEL_ROWS * i + length, r)
            store_f32(shares, PANEL_ROWS * i + length, value)
            store_i32(lengths, i, length + (value != 0))
            fires |= value != 0
        used |= fires << r
    return used


@compiled
def decode_part(add: int, function: int, row: int, width: int, target: int, scratch: int) -> None:
    """``width`` weights from address ``row`` on as float32 at ``target``."""
    clear(target, width)
    store_f32(scratch, _ONE, 1.0)
    call_add(add, (function, row, 0, 0, 0, 1, 1, scratch + 4 * _ONE, width, target, scratch))


@compiled
def add_panel(panel: int, listed: int, shares: int, length: int, out: int, width: int) -> None:
    """out += sum of share x panel row over listed rows."""
    if width == PANEL_COLUMNS:
        for c in range(0, PANEL_COLUMNS, 128):
            blend(0, 8, panel + 4 * c, 4 * PANEL_COLUMNS, listed, shares, length, out + 4 * c)
        return
    whole = width // 32 * 32
    for c in range(0, whole, 32):
        blend(0, 2, panel + 4 * c, 4 * PANEL_COLUMNS, listed, shares, length, out + 4 * c)
    for i in range(length if whole < width else 0):
        row = panel + 4 * PANEL_COLUMNS * load_i32(listed, i)
        for c in range(whole, width):
            store_f32(out, c, load_f32(out, c) + load_f32(shares, i) * load_f32(row, c))
