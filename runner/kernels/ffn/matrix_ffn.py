"""The FFN with its down matrix as llama.cpp stores it: all activations first, then the matrix product."""

from ..barrier import meet
from ..compiling import compiled
from ..matrix_products import multiply, multiply_run, ready
from ..memory import load_i32, load_i64, store_i32
from ..parameters import Layer, Parameters, counts_at, row_at
from ..residual import add_floats, add_to_residual, clear
from ..work_shares import run_start
from .activations import activate_run
from .routing import choose_tokens, share_for


@compiled
def down_product(params: Parameters, thread: int, layer: Layer, expert: int, some: int, fresh: int) -> None:
    """added += down . activations of ``some`` tokens; this thread's rows. The first expert's begin at 0 (``fresh``)."""
    width, row, chosen = params.width, thread if params.tokens == 1 else 0, row_at(params.chosen_tokens, thread)
    several, gate, hidden = params.experts > 0, params.gate.address, params.prepared_hidden
    first, end = run_start(params, width, thread), run_start(params, width, thread + 1)
    ready(params, thread, layer.ffn_down, gate, hidden, 0)
    into = params.other.address if several else params.added.address
    multiply_run(params, thread, layer.ffn_down, expert, gate, hidden, row, chosen, some, into)
    if not several:
        return
    if fresh:  # all have met: nobody adds attention's part to the residual any more
        for t in range(params.tokens):
            clear(params, row_at(params.added, t) + 4 * first, end - first)
    for i in range(some):
        place = 4 * (load_i32(chosen, i) * width + first)
        add_floats(params, into + place, params.added.address + place, end - first)
    meet(params, thread)


@compiled
def expert_by_matrix(
    params: Parameters, thread: int, layer: Layer, expert: int, some: int, form: int, fresh: int
) -> int:
    """Add what one FFN makes of its tokens to ``added``: this thread's neurons, then its rows of the down matrix."""
    neurons, row, chosen = params.neurons, thread if params.tokens == 1 else 0, row_at(params.chosen_tokens, thread)
    x, gate, up, prepared = row_at(params.normed, row), params.gate.address, params.up.address, params.prepared
    first, end = run_start(params, neurons, thread), run_start(params, neurons, thread + 1)
    size, counts = end - first, counts_at(row_at(params.counts, thread), layer.index)
    tensor = layer.ffn_gate
    form = ready(params, thread, tensor, x, prepared, form)
    multiply(params, thread, tensor, expert, 0, first, size, x, prepared, row, chosen, some, gate, 1, neurons)
    tensor = layer.ffn_up
    form = ready(params, thread, tensor, x, prepared, form)
    multiply(params, thread, tensor, expert, 0, first, size, x, prepared, row, chosen, some, up, 1, neurons)
    counts.gate += some * size
    counts.up += some * size
    counts.down += some * size
    for i in range(some):
        t = load_i32(chosen, i)
        place, whose = 4 * (t * neurons + first), thread if params.tokens == 1 else t
        counts.fired += activate_run(params, layer, gate + place, up + place, size, share_for(params, whose, expert))
    meet(params, thread)
    down_product(params, thread, layer, expert, some, fresh)
    return form


@compiled
def ffn_by_matrix(params: Parameters, thread: int, layer: Layer) -> None:
    """x += FFN(normed) of one token or a block; every row is read."""
    form, fresh, one = 0, 1, params.tokens == 1
    for i in range(params.experts_per_token if one else max(1, params.experts)):
        expert, some = i, 1
        if one:
            expert = load_i64(row_at(params.choice, thread), i)
            store_i32(row_at(params.chosen_tokens, thread), 0, 0)
        else:
            some = choose_tokens(params, thread, expert)
        if some:
            form = expert_by_matrix(params, thread, layer, expert, some, form, fresh)
            fresh = 0
    meet(params, thread)
    add_to_residual(params, thread)
