"""The compiled step: a block of tokens through the whole model, run by every thread over its share of rows.

No allocation, no Python object and no interpreter lock inside. All threads call it with the same record, and meet at
barriers.
"""

from .attention import attention
from .barrier import aborted, meet, stay
from .compiling import compiled
from .ffn.ffn import ffn
from .matrix_products import multiply, ready
from .memory import store_i32
from .parameters import Parameters, layer_at, row_at
from .residual import cap_floats, embed, normalise, scale_floats
from .work_shares import run_start


@compiled
def head(params: Parameters, thread: int) -> None:
    """Logits of the last ``outputs`` tokens."""
    tensor, outputs = params.output, params.outputs
    normalise(params, thread, params.output_norm)
    row, chosen, skipped = (
        thread if params.tokens == 1 else 0,
        row_at(params.chosen_tokens, thread),
        params.tokens - outputs,
    )
    x = row_at(params.normed, row)
    ready(params, thread, tensor, x, params.prepared, 0)
    for i in range(outputs):
        store_i32(chosen, i, skipped + i)
    first, end = run_start(params, tensor.rows, thread), run_start(params, tensor.rows, thread + 1)
    out = params.logits_out - 4 * skipped * tensor.rows
    multiply(
        params, thread, tensor, 0, 0, first, end - first, x, params.prepared, row, chosen, outputs, out, 1, tensor.rows
    )
    for i in range(outputs):
        mine = params.logits_out + 4 * (i * tensor.rows + first)
        if params.logit_softcap != 0:
            cap_floats(params, mine, end - first, params.logit_scale, params.logit_softcap)
        elif params.logit_scale != 1:
            scale_floats(params, mine, end - first, params.logit_scale)


@compiled
def step(params: Parameters, thread: int) -> None:
    """The tokens of the record through the model; stops early where a thread has aborted."""
    embed(params, thread)
    for index in range(params.layers):
        layer = layer_at(params.layer_table, index)
        attention(params, thread, layer)
        ffn(params, thread, layer)
        if aborted(params):
            return
    if params.outputs:
        head(params, thread)
    meet(params, thread)


@compiled
def steps(params: Parameters, thread: int) -> None:
    """One step, and as a member of the team those that follow soon."""
    step(params, thread)
    while thread > 0 and stay(params, thread) == 1:
        step(params, thread)
