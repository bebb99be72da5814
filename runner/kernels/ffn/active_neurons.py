"""Which neurons of a token's FFN may fire: those that its predictor names, or else those whose gate is open."""

import numpy as np

from ..compiling import compiled
from ..matrix_products import multiply_run, ready
from ..memory import load_f32, load_i32, load_i64, store_f32, store_i32
from ..parameters import LINE, PREDICTED, Layer, Parameters, counts_at, row_at
from ..work_shares import run_start
from .activations import activation_of, add_neuron_bias, is_open, shift_gates, shift_ups


@compiled
def has_predictor(params: Parameters, layer: Layer, expert: int) -> int:
    """Whether (1 or 0) an FFN's neurons are found by its predictor."""
    if params.mode != PREDICTED or layer.fc1.address == 0:
        return 0
    return 0 if np.isnan(load_f32(layer.thresholds, expert)) else 1


@compiled
def list_predicted(params: Parameters, logits: int, first: int, end: int, threshold: float, listed: int) -> int:  # noqa: ARG001
    """List the numbers from ``first`` to ``end`` whose logit reaches a threshold; returns how many."""
    kept = 0
    for j in range(first, end):
        store_i32(listed, kept, j)
        kept += load_f32(logits, j) >= threshold
    return kept


@compiled
def list_open(params: Parameters, gate: int, first: int, end: int, listed: int) -> int:
    """The same for open gates."""
    kept = 0
    for j in range(first, end):
        store_i32(listed, kept, j)
        kept += is_open(params.activation, load_f32(gate, j))
    return kept


@compiled
def keep_open(params: Parameters, listed: int, count: int, gate: int) -> int:
    """Keep the listed neurons whose gate is open; returns how many."""
    kept = 0
    for i in range(count):
        j = load_i32(listed, i)
        store_i32(listed, kept, j)
        kept += is_open(params.activation, load_f32(gate, j))
    return kept


@compiled
def keep_firing(params: Parameters, listed: int, count: int, activations: int) -> int:  # noqa: ARG001
    """Keep the listed neurons whose activation is not zero; returns how many."""
    kept = 0
    for i in range(count):
        j = load_i32(listed, i)
        store_i32(listed, kept, j)
        kept += load_f32(activations, j) != 0
    return kept


@compiled
def count_missed(
    params: Parameters, layer: Layer, first: int, end: int, gate: int, up: int, logits: int, threshold: float
) -> int:
    """Neurons that fire although their logit is below the threshold."""
    missed, activation, least = 0, params.activation, layer.least
    for j in range(first, end):
        silent = load_f32(logits, j) < threshold
        missed += silent and activation_of(activation, load_f32(gate, j), load_f32(up, j), least) != 0
    return missed


@compiled
def predictor_hidden(params: Parameters, thread: int, layer: Layer) -> int:
    """relu(fc1 . x), or without relu, of every chosen expert's predictor; this thread's rows.

    Returns the form of the normed input.
    """
    tensor, normed, prepared = layer.fc1, params.normed_predictors, params.prepared
    x = row_at(params.normed, thread) if normed else row_at(params.x, thread)
    form = ready(params, thread, tensor, x, prepared, 0)
    first, end = run_start(params, tensor.rows, thread), run_start(params, tensor.rows, thread + 1)
    for k in range(params.experts_per_token):
        out, expert = row_at(params.hidden, k), load_i64(row_at(params.choice, thread), k)
        multiply_run(params, thread, tensor, expert, x, prepared, thread, 0, 1, out)
        if not params.linear_predictors:
            for r in range(first, end):
                store_f32(out, r, max(load_f32(out, r), np.float32(0)))
    return form if normed else 0


@compiled
def find_neurons(params: Parameters, thread: int, layer: Layer, form: int) -> int:
    """List, of this thread's run of neurons, those whose predictor logit, or else whose gate, is large enough."""
    first, end = run_start(params, params.neurons, thread), run_start(params, params.neurons, thread + 1)
    x, prepared, counts = (
        row_at(params.normed, thread),
        params.prepared,
        counts_at(row_at(params.counts, thread), layer.index),
    )
    for k in range(params.experts_per_token):
        expert = load_i64(row_at(params.choice, thread), k)
        listed, gate = row_at(params.listed, thread) + 4 * k * params.neurons, row_at(params.gate, k)
        logits, up, threshold = row_at(params.logits, k), row_at(params.up, k), load_f32(layer.thresholds, expert)
        known, found = has_predictor(params, layer, expert), 0
        if known:
            hidden, ready_hidden = row_at(params.hidden, k), params.prepared_hidden
            ready(params, thread, layer.fc2, hidden, ready_hidden, 0)
            multiply_run(params, thread, layer.fc2, expert, hidden, ready_hidden, thread, 0, 1, logits)
            found = list_predicted(params, logits, first, end, threshold, listed)
            counts.predicted += found
        if params.audit or not known:
            form = ready(params, thread, layer.ffn_gate, x, prepared, form)
            multiply_run(params, thread, layer.ffn_gate, expert, x, prepared, thread, 0, 1, gate)
            add_neuron_bias(params, layer.ffn_gate_bias, gate, 0, first, end - first)
            shift_gates(params, layer, expert, gate, 0, first, end - first)
        if not known:
            counts.gate += end - first
            found = list_open(params, gate, first, end, listed)
        elif params.audit:
            form = ready(params, thread, layer.ffn_up, x, prepared, form)
            multiply_run(params, thread, layer.ffn_up, expert, x, prepared, thread, 0, 1, up)
            add_neuron_bias(params, layer.ffn_up_bias, up, 0, first, end - first)
            shift_ups(params, layer, up, 0, first, end - first)
            counts.missed += count_missed(params, layer, first, end, gate, up, logits, threshold)
        store_i32(row_at(params.found, thread), k * LINE, found)
    return form
