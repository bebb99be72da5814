"""What both halves of a layer are made of: the residual's rows, inputs made ready, products of a tensor's rows.

One token is normalised and prepared by every thread for itself, so that nobody waits; of a block each thread takes some
tokens, and all meet. `rows_of` is the rule.
"""

from typing import Any

from .access import add_to, at, number, real, row_bytes, type_field
from .barrier import meet
from .compiling import compiled
from .elementwise import UNIT, rms_norm, share_of
from .native import call_add, call_products, load_f32, load_i64, store_f32
from .rows import ADD, FLOATS, KIND, PRODUCTS, TO_FLOAT, VEC_DOT, prepare_inputs
from .tables import (
    ADDED,
    ADDRESS,
    COLUMNS,
    COUNTED,
    COUNTS,
    EPS,
    EXPERT_BYTES,
    NORMED,
    NORMS,
    ROW_BYTES,
    ROWS,
    SCRATCH,
    SYNC,
    TYPE,
    TYPES,
    WIDTH,
    X,
)


@compiled
def rows_of(thread: int, threads: int, tokens: int) -> Any:
    """The first and the end of the buffers' rows that a thread takes care of."""
    if tokens == 1:
        return thread, thread + 1
    return share_of(tokens, thread, threads, 1), share_of(tokens, thread + 1, threads, 1)


@compiled
def run_of(rows: int, thread: int, threads: int) -> Any:
    """The first and the end of the matrix rows that a thread takes care of."""
    return share_of(rows, thread, threads, UNIT), share_of(rows, thread + 1, threads, UNIT)


@compiled
def gather_all(m: int, thread: int, threads: int) -> None:
    """Wait for all threads."""
    meet(at(m, SYNC, 0), thread, threads)


@compiled
def normalise(m: int, thread: int, threads: int, tokens: int, norm: int) -> None:
    """normed = rms_norm(x)."""
    first, end = rows_of(thread, threads, tokens)
    for r in range(first, end):
        rms_norm(at(m, X, r), at(m, NORMS, norm), number(m, WIDTH), real(m, EPS), at(m, NORMED, r))
    if tokens > 1:
        gather_all(m, thread, threads)


@compiled
def ready(m: int, thread: int, threads: int, tokens: int, tensor: int, x: int, target: int, form: int) -> Any:
    """Bring inputs into the form that rows of a tensor meet; returns the form.

    Of a block each thread prepares its tokens; of one token every thread all of it, into its row of the buffer.

    Args:
        tensor: address of its row of the weight table.
        x: address of the float32 inputs, one behind the other.
        target: the buffer, PREPARED or PREPARED_HIDDEN.
        form: what this function returned when it last filled the buffer with these inputs, 0 at first.
    """
    types, type_id, columns = at(m, TYPES, 0), load_i64(tensor, TYPE), load_i64(tensor, COLUMNS)
    if type_field(types, type_id, KIND) == FLOATS:
        return form
    first, end = rows_of(thread, threads, tokens)
    if tokens == 1:
        return prepare_inputs(types, type_id, x, columns, 1, at(m, target, thread), 0, form)
    if form != 0:
        gather_all(m, thread, threads)
    place, stride = at(m, target, first), row_bytes(m, target)
    form = prepare_inputs(types, type_id, x + 4 * columns * first, columns, end - first, place, stride, form)
    gather_all(m, thread, threads)
    return form


@compiled
def multiply(
    m: int, thread: int, tensor: int, expert: int, listed: int, first: int, count: int, x: int, target: int, row: int,
    chosen: int, tokens: int, out: int, row_step: int, token_step: int,
) -> None:  # fmt: skip
    """Products of rows of a tensor; arguments as products.py has them.

    Args:
        tensor, x, target: as for `ready`.
        row: of the buffer ``target``, where the inputs begin.
    """
    types, type_id = at(m, TYPES, 0), load_i64(tensor, TYPE)
    base = load_i64(tensor, ADDRESS) + expert * load_i64(tensor, EXPERT_BYTES)
    columns = load_i64(tensor, COLUMNS)
    inputs, stride = x, 4 * columns
    if type_field(types, type_id, KIND) != FLOATS:
        inputs, stride = at(m, target, row), row_bytes(m, target)
    call_products(
        type_field(types, type_id, PRODUCTS),
        (
            type_field(types, type_id, VEC_DOT), base, load_i64(tensor, ROW_BYTES), listed, first, count, columns,
            inputs, stride, chosen, tokens, out, row_step, token_step, at(m, SCRATCH, thread),
        ),
    )  # fmt: skip


@compiled
def multiply_run(
    m: int, thread: int, threads: int, tensor: int, expert: int, x: int, target: int, row: int, chosen: int,
    tokens: int, out: int,
) -> None:  # fmt: skip
    """All products of a tensor's rows that the thread takes care of, to one row of ``out`` a token."""
    rows = load_i64(tensor, ROWS)
    first, end = run_of(rows, thread, threads)
    multiply(m, thread, tensor, expert, 0, first, end - first, x, target, row, chosen, tokens, out, 1, rows)


@compiled
def add_listed(
    m: int, thread: int, tensor: int, expert: int, listed: int, first: int, count: int, last: int, weights: int,
    into: int,
) -> None:  # fmt: skip
    """into += sum of weights[j] x row j of a tensor; arguments as products.py has them."""
    types, type_id = at(m, TYPES, 0), load_i64(tensor, TYPE)
    base = load_i64(tensor, ADDRESS) + expert * load_i64(tensor, EXPERT_BYTES)
    call_add(
        type_field(types, type_id, ADD),
        (
            type_field(types, type_id, TO_FLOAT), base, load_i64(tensor, ROW_BYTES), listed, first, count, last,
            weights, load_i64(tensor, COLUMNS), into, at(m, SCRATCH, thread),
        ),
    )  # fmt: skip


@compiled
def add_to_residual(m: int, thread: int, threads: int, tokens: int) -> None:
    """x += added, which all threads have written."""
    first, end = rows_of(thread, threads, tokens)
    for r in range(first, end):
        add_floats(at(m, ADDED, 0 if tokens == 1 else r), at(m, X, r), number(m, WIDTH))


@compiled
def add_floats(source: int, into: int, count: int) -> None:
    """into[i] += source[i]."""
    for i in range(count):
        store_f32(into, i, load_f32(into, i) + load_f32(source, i))


@compiled
def clear(into: int, count: int) -> None:
    """``count`` zeros."""
    for i in range(count):
        store_f32(into, i, 0.0)


@compiled
def tally(m: int, thread: int, layer: int, what: int, more: int) -> None:
    """Add to a counter of this thread."""
    add_to(at(m, COUNTED, thread), layer * COUNTS + what, more)
