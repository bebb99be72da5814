"""The FFN of one token, neuron by neuron: found by predictor or gate, shared out evenly, summed in a fixed order.

A pass drops from the list what can add nothing: after the gate those whose gate is not positive, after up those whose
activation is zero. Dense mode drops none, and reads every row.
"""

from ..barrier import meet
from ..compiling import compiled
from ..matrix_products import add_listed, multiply, ready
from ..memory import load_f32, load_i32, load_i64, store_i32
from ..parameters import DENSE, LEAVES, LINE, PREDICTED, Layer, Parameters, counts_at, row_at
from ..reduction_tree import add_sums, first_leaf, join_sums, leaf_start, sum_at
from ..residual import clear
from .activations import activate, add_neuron_bias, shift_gates, shift_ups
from .active_neurons import find_neurons, has_predictor, keep_firing, keep_open, predictor_hidden

_NO_NEURON = 2**31 - 1


@compiled
def take_share(params: Parameters, thread: int, k: int) -> int:
    """Take one thread's leaves from what all threads have listed for chosen expert ``k``, in their order.

    They go to `mine`; to `ends`, for each of its leaves, the neuron that the next one begins with.

    Returns:
        How many neurons they are.
    """
    place, total = 4 * k * params.neurons, 0
    mine, ends = row_at(params.mine, thread) + place, row_at(params.ends, thread) + 4 * k * LEAVES
    for other in range(params.threads):
        total += load_i32(row_at(params.found, other), k * LINE)
    leaf, end_leaf = first_leaf(params, thread), first_leaf(params, thread + 1)
    low, high = leaf_start(params, total, leaf), leaf_start(params, total, end_leaf)
    before, taken = 0, 0
    for other in range(params.threads):
        length = load_i32(row_at(params.found, other), k * LINE)
        for i in range(max(low - before, 0), min(high - before, length)):
            store_i32(mine, taken, load_i32(row_at(params.listed, other) + place, i))
            taken += 1
        before += length
    for i in range(end_leaf - leaf):
        end = leaf_start(params, total, leaf + i + 1) - low
        store_i32(ends, i, load_i32(mine, end) if end < taken else _NO_NEURON)
    return taken


@compiled
def end_leaves(params: Parameters, thread: int, k: int, left: int) -> None:
    """Turn the neurons that `ends` has into places in what is left of a thread's list."""
    mine, ends = row_at(params.mine, thread) + 4 * k * params.neurons, row_at(params.ends, thread) + 4 * k * LEAVES
    place = 0
    for i in range(first_leaf(params, thread + 1) - first_leaf(params, thread)):
        while place < left and load_i32(mine, place) < load_i32(ends, i):
            place += 1
        store_i32(ends, i, place)


@compiled
def token_activations(params: Parameters, thread: int, layer: Layer, k: int, form: int) -> int:
    """Activations of this thread's neurons of chosen expert ``k`` into `gate`; which of them count into `mine`."""
    neurons, x, expert = params.neurons, row_at(params.normed, thread), load_i64(row_at(params.choice, thread), k)
    gate, up, dense = row_at(params.gate, k), row_at(params.up, k), params.mode == DENSE
    prepared, counts = params.prepared, counts_at(row_at(params.counts, thread), layer.index)
    leaf, end_leaf = first_leaf(params, thread), first_leaf(params, thread + 1)
    listed, first, ends = 0, leaf_start(params, neurons, leaf), row_at(params.ends, thread) + 4 * k * LEAVES
    some = leaf_start(params, neurons, end_leaf) - first
    if not dense:
        listed, first, some = row_at(params.mine, thread) + 4 * k * neurons, 0, take_share(params, thread, k)
    if dense or has_predictor(params, layer, expert):
        tensor = layer.ffn_gate
        form = ready(params, thread, tensor, x, prepared, form)
        multiply(params, thread, tensor, expert, listed, first, some, x, prepared, thread, 0, 1, gate, 1, 0)
        add_neuron_bias(params, layer.ffn_gate_bias, gate, listed, first, some)
        shift_gates(params, layer, expert, gate, listed, first, some)
        counts.gate += some
        if not dense:
            some = keep_open(params, listed, some, gate)
    tensor = layer.ffn_up
    form = ready(params, thread, tensor, x, prepared, form)
    multiply(params, thread, tensor, expert, listed, first, some, x, prepared, thread, 0, 1, up, 1, 0)
    add_neuron_bias(params, layer.ffn_up_bias, up, listed, first, some)
    shift_ups(params, layer, up, listed, first, some)
    counts.up += some
    counts.fired += activate(params, layer, listed, first, some, gate, up, load_f32(row_at(params.share, thread), k))
    if dense:
        for i in range(end_leaf - leaf):
            store_i32(ends, i, leaf_start(params, neurons, leaf + i + 1))
    else:
        some = keep_firing(params, listed, some, gate)
        end_leaves(params, thread, k, some)
    counts.down += some
    return form


@compiled
def sum_leaves(params: Parameters, thread: int, layer: Layer) -> None:
    """What this thread's neurons contribute, leaf by leaf; all chosen experts' in one tree."""
    first, end, neurons, held = first_leaf(params, thread), first_leaf(params, thread + 1), params.neurons, 0
    dense = params.mode == DENSE
    start = leaf_start(params, neurons, first) if dense else 0
    for leaf in range(first, end):
        into = sum_at(params, thread, held)
        clear(params, into, params.width)
        for k in range(params.experts_per_token):
            ends = row_at(params.ends, thread) + 4 * k * LEAVES
            listed = 0 if dense else row_at(params.mine, thread) + 4 * k * neurons
            begin = start if leaf == first else load_i32(ends, leaf - first - 1)
            count, last = load_i32(ends, leaf - first) - begin, load_i32(ends, end - first - 1)
            expert, weights = load_i64(row_at(params.choice, thread), k), row_at(params.gate, k)
            add_listed(params, thread, layer.ffn_down, expert, listed, begin, count, last, weights, into)
        held = join_sums(params, thread, leaf, held + 1)


@compiled
def ffn_of_token(params: Parameters, thread: int, layer: Layer) -> None:
    """x += FFN(normed) of one token; under audit, neurons that were not predicted are looked at too."""
    form = 0
    if params.mode == PREDICTED and layer.fc1.address != 0:
        form = predictor_hidden(params, thread, layer)
        meet(params, thread)
    if params.mode != DENSE:
        form = find_neurons(params, thread, layer, form)
        meet(params, thread)
    for k in range(params.experts_per_token):
        form = token_activations(params, thread, layer, k, form)
    sum_leaves(params, thread, layer)
    add_sums(params, thread, layer.ffn_down_bias, layer.ffn_post_norm)
