"""Products of a tensor's rows with inputs, and weighted sums of its rows, by the kernels of its type."""

from .barrier import meet
from .compiling import compiled
from .parameters import Buffer, Parameters, Tensor, row_at
from .row_kernels import call_add, call_products
from .weight_types import FLOATS, prepare_inputs
from .work_shares import run_start, token_start


@compiled
def ready(params: Parameters, thread: int, tensor: Tensor, x: int, target: Buffer, form: int) -> int:
    """Bring inputs into the form that rows of a tensor meet; returns the form.

    Of a block each thread prepares its tokens; of one token every thread all of it, into its row of the buffer.

    Args:
        x: address of the float32 inputs, one behind the other.
        target: where to: `prepared` or `prepared_hidden`.
        form: what this function returned when it last filled the buffer with these inputs, 0 at first.
    """
    kind, columns = tensor.type, tensor.columns
    if kind.kind == FLOATS:
        return form
    first, end = token_start(params, thread), token_start(params, thread + 1)
    if params.tokens == 1:
        return prepare_inputs(params, kind, x, columns, 1, row_at(target, thread), 0, form)
    if form != 0:
        meet(params, thread)
    x += 4 * columns * first
    form = prepare_inputs(params, kind, x, columns, end - first, row_at(target, first), target.row_bytes, form)
    meet(params, thread)
    return form


@compiled
def multiply(
    params: Parameters, thread: int, tensor: Tensor, expert: int, listed: int, first: int, count: int, x: int,
    target: Buffer, row: int, chosen: int, tokens: int, out: int, row_step: int, token_step: int,
) -> None:  # fmt: skip
    """Products of rows of a tensor; arguments as row_kernels.py has them.

    Args:
        x, target: as for `ready`.
        row: of the buffer ``target``, where the inputs begin.
    """
    inputs, stride = x, 4 * tensor.columns
    if tensor.type.kind != FLOATS:
        inputs, stride = row_at(target, row), target.row_bytes
    call_products(
        params, tensor.type, tensor.address + expert * tensor.expert_bytes, tensor.row_bytes, listed, first, count,
        tensor.columns, inputs, stride, chosen, tokens, out, row_step, token_step, row_at(params.scratch, thread),
    )  # fmt: skip


@compiled
def multiply_run(
    params: Parameters, thread: int, tensor: Tensor, expert: int, x: int, target: Buffer, row: int, chosen: int,
    tokens: int, out: int,
) -> None:  # fmt: skip
    """All products of a tensor's rows that the thread takes care of, to one row of ``out`` a token."""
    first, end = run_start(params, tensor.rows, thread), run_start(params, tensor.rows, thread + 1)
    multiply(params, thread, tensor, expert, 0, first, end - first, x, target, row, chosen, tokens, out, 1, tensor.rows)


@compiled
def add_listed(
    params: Parameters, thread: int, tensor: Tensor, expert: int, listed: int, first: int, count: int, last: int,
    weights: int, into: int,
) -> None:  # fmt: skip
    """into += sum of weights[j] x row j of a tensor; arguments as row_kernels.py has them."""
    call_add(
        params, tensor.type, tensor.address + expert * tensor.expert_bytes, tensor.row_bytes, listed, first, count,
        last, weights, tensor.columns, into, row_at(params.scratch, thread),
    )  # fmt: skip
