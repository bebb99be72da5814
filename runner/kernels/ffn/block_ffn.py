"""The FFN of a block of tokens with a transposed down matrix: gates and ups by neuron, then sums by column.

A neuron's row is multiplied with the tokens for which it may fire only. The down product is sparse too (panel_sums.py).
"""

import numpy as np

from ..barrier import meet
from ..compiling import compiled
from ..matrix_products import multiply, multiply_run, ready
from ..memory import load_f32, load_i32, store_f32, store_i32
from ..panel_sums import begin_sums, sum_rows
from ..parameters import BLOCK, DENSE, Layer, Parameters, counts_at, row_at
from ..residual import add_to_residual, clear
from ..work_shares import run_start
from .activations import activation_of, add_token_bias, is_open, shift_token_gates, shift_ups, smooth
from .active_neurons import has_predictor
from .routing import choose_tokens, share_for


@compiled
def chosen_above(params: Parameters, thread: int, some: int, values: int, threshold: float) -> int:
    """List the chosen tokens whose float reaches the threshold; returns how many."""
    chosen, listed, kept = row_at(params.chosen_tokens, thread), row_at(params.firing_tokens, thread), 0
    for i in range(some):
        t = load_i32(chosen, i)
        store_i32(listed, kept, t)
        kept += load_f32(values, t) >= threshold
    return kept


@compiled
def chosen_open(params: Parameters, thread: int, some: int, values: int) -> int:
    """List the chosen tokens whose gate is open; returns how many."""
    chosen, listed, kept = row_at(params.chosen_tokens, thread), row_at(params.firing_tokens, thread), 0
    for i in range(some):
        t = load_i32(chosen, i)
        store_i32(listed, kept, t)
        kept += is_open(params.activation, load_f32(values, t))
    return kept


@compiled
def predictor_logits(params: Parameters, thread: int, layer: Layer, expert: int, some: int, form: int) -> int:
    """The predictor's logits of this thread's neurons into `logits`; returns the form of the normed inputs."""
    tensor, normed, chosen = layer.fc1, params.normed_predictors, row_at(params.chosen_tokens, thread)
    x, hidden, rank = params.normed.address if normed else params.x.address, params.hidden.address, layer.fc1.rows
    if not normed and form != 0:
        meet(params, thread)
    form = ready(params, thread, tensor, x, params.prepared, form if normed else 0)
    multiply_run(params, thread, tensor, expert, x, params.prepared, 0, chosen, some, hidden)
    first, end = run_start(params, rank, thread), run_start(params, rank, thread + 1)
    if not params.linear_predictors:
        for t in range(params.tokens):
            for r in range(first, end):
                store_f32(hidden, t * rank + r, max(load_f32(hidden, t * rank + r), np.float32(0)))
    meet(params, thread)
    tensor, out = layer.fc2, params.logits.address
    first, end = run_start(params, params.neurons, thread), run_start(params, params.neurons, thread + 1)
    ready(params, thread, tensor, hidden, params.prepared_hidden, 0)
    multiply(
        params, thread, tensor, expert, 0, first, end - first, hidden, params.prepared_hidden, 0, chosen, some, out,
        BLOCK, 1,
    )  # fmt: skip
    return form if normed else 0


@compiled
def predicted_gates(params: Parameters, thread: int, layer: Layer, expert: int, some: int) -> None:
    """Gates of the tokens for which a neuron is predicted, zero for the others."""
    first, end = run_start(params, params.neurons, thread), run_start(params, params.neurons, thread + 1)
    listed, threshold = row_at(params.firing_tokens, thread), load_f32(layer.thresholds, expert)
    x, gate, logits, all_found = params.normed.address, params.gate.address, params.logits.address, 0
    for j in range(first, end):
        found = chosen_above(params, thread, some, logits + 4 * BLOCK * j, threshold)
        all_found += found
        clear(params, gate + 4 * BLOCK * j, BLOCK)
        if found:
            multiply(
                params, thread, layer.ffn_gate, expert, 0, j, 1, x, params.prepared, 0, listed, found, gate, BLOCK, 1
            )
            add_token_bias(params, layer.ffn_gate_bias, gate, listed, found, j, j + 1)
            shift_token_gates(params, layer, expert, gate, j, j + 1)
    counts = counts_at(row_at(params.counts, thread), layer.index)
    counts.predicted += all_found
    counts.gate += all_found


@compiled
def open_ups(params: Parameters, thread: int, layer: Layer, expert: int, some: int) -> None:
    """Ups of the tokens whose gate is open."""
    first, end = run_start(params, params.neurons, thread), run_start(params, params.neurons, thread + 1)
    listed, x, up, all_found = row_at(params.firing_tokens, thread), params.normed.address, params.up.address, 0
    for j in range(first, end):
        found = chosen_open(params, thread, some, params.gate.address + 4 * BLOCK * j)
        all_found += found
        if found:
            multiply(params, thread, layer.ffn_up, expert, 0, j, 1, x, params.prepared, 0, listed, found, up, BLOCK, 1)
            add_token_bias(params, layer.ffn_up_bias, up, listed, found, j, j + 1)
            shift_ups(params, layer, up, 0, BLOCK * j, BLOCK)
    counts = counts_at(row_at(params.counts, thread), layer.index)
    counts.up += all_found


@compiled
def drop_missed(
    params: Parameters, thread: int, layer: Layer, some: int, first: int, end: int, threshold: float
) -> int:
    """Silence neurons that were not predicted; returns how many would have fired."""
    chosen, gate, up, logits = (
        row_at(params.chosen_tokens, thread),
        params.gate.address,
        params.up.address,
        params.logits.address,
    )
    missed, activation, least = 0, params.activation, layer.least
    for j in range(first, end):
        for i in range(some):
            place = BLOCK * j + load_i32(chosen, i)
            if load_f32(logits, place) < threshold:
                missed += activation_of(activation, load_f32(gate, place), load_f32(up, place), least) != 0
                store_f32(gate, place, 0.0)
    return missed


@compiled
def activate_tokens(params: Parameters, thread: int, layer: Layer, expert: int, some: int, neuron: int) -> int:
    """Turn a neuron's gates into activations times the tokens' shares; returns how many are not zero.

    A shut gate needs no up.
    """
    chosen, place, fired = row_at(params.chosen_tokens, thread), 4 * BLOCK * neuron, 0
    gate, up, activation = params.gate.address + place, params.up.address + place, params.activation
    for i in range(some):
        t = load_i32(chosen, i)
        g, h = load_f32(gate, t), np.float32(0)
        if is_open(activation, g) or smooth(activation):
            h = activation_of(activation, g, load_f32(up, t), layer.least) * share_for(params, t, expert)
        store_f32(gate, t, h)
        fired += h != 0
    return fired


@compiled
def block_activations(params: Parameters, thread: int, layer: Layer, expert: int, some: int, form: int) -> int:
    """Activations of this thread's neurons for the chosen tokens into `gate`, zero where they do not fire."""
    first, end = run_start(params, params.neurons, thread), run_start(params, params.neurons, thread + 1)
    size, counts = end - first, counts_at(row_at(params.counts, thread), layer.index)
    x, prepared, chosen = params.normed.address, params.prepared, row_at(params.chosen_tokens, thread)
    gate, up, logits = params.gate.address, params.up.address, params.logits.address
    known, whole = has_predictor(params, layer, expert), params.mode == DENSE or params.audit != 0
    if known:
        form = predictor_logits(params, thread, layer, expert, some, form)
    tensor = layer.ffn_gate
    form = ready(params, thread, tensor, x, prepared, form)
    if whole or not known:
        multiply(params, thread, tensor, expert, 0, first, size, x, prepared, 0, chosen, some, gate, BLOCK, 1)
        add_token_bias(params, layer.ffn_gate_bias, gate, chosen, some, first, end)
        shift_token_gates(params, layer, expert, gate, first, end)
        counts.gate += some * size
    else:
        predicted_gates(params, thread, layer, expert, some)
    tensor = layer.ffn_up
    form = ready(params, thread, tensor, x, prepared, form)
    if whole:
        multiply(params, thread, tensor, expert, 0, first, size, x, prepared, 0, chosen, some, up, BLOCK, 1)
        add_token_bias(params, layer.ffn_up_bias, up, chosen, some, first, end)
        shift_ups(params, layer, up, 0, BLOCK * first, BLOCK * size)
        counts.up += some * size
    else:
        open_ups(params, thread, layer, expert, some)
    if params.audit and known:
        threshold = load_f32(layer.thresholds, expert)
        for j in range(first, end):
            counts.predicted += chosen_above(params, thread, some, logits + 4 * BLOCK * j, threshold)
        counts.missed += drop_missed(params, thread, layer, some, first, end, threshold)
    fired = 0
    for j in range(first, end):
        fired += activate_tokens(params, thread, layer, expert, some, j)
    counts.fired += fired
    counts.down += some * size if params.mode == DENSE else fired
    return form


@compiled
def ffn_of_block(params: Parameters, thread: int, layer: Layer) -> None:
    """x += FFN(normed) of a block of tokens; under audit all neurons are looked at."""
    form = 0
    begin_sums(params, thread, layer.ffn_down_bias)
    for expert in range(max(1, params.experts)):
        some = choose_tokens(params, thread, expert)
        if some:
            form = block_activations(params, thread, layer, expert, some, form)
            meet(params, thread)
            sum_rows(params, thread, layer.ffn_down, expert, some, params.gate.address, BLOCK, 1)
            meet(params, thread)
    add_to_residual(params, thread, layer.ffn_post_norm)
