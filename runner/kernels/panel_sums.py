"""Weighted sums of a matrix's rows for a block of tokens, of which each needs some: `ffn_down_t`, `attn_output_t`.

Some rows are decoded into a panel that stays in the cache, and each token adds those whose activation is not zero.
"""

from .compiling import compiled
from .memory import load_f32, load_i32, store_f32, store_i32
from .parameters import PANEL_COLUMNS, PANEL_ROWS, BlockType, Parameters, Tensor, row_at
from .residual import add_floats, clear
from .row_kernels import call_add
from .simd.float_vectors import blend
from .work_shares import UNIT, share_start

_ONE = 100  # where a weight of 1 stands in a thread's scratch, in floats


@compiled
def list_firing(params: Parameters, thread: int, some: int, rows: int, h: int, row_step: int, token_step: int) -> int:
    """For each chosen token, which of ``rows`` activations are not zero, how large, and how many; a bit a row.

    Args:
        h: address of the first row's activations, that of token t at row_step * row + token_step * t.
    """
    chosen = row_at(params.chosen_tokens, thread)
    lists, shares = row_at(params.firing, thread), row_at(params.firing_shares, thread)
    lengths, used = row_at(params.firing_counts, thread), 0
    for i in range(some):
        store_i32(lengths, i, 0)
    for r in range(rows):
        fires = False
        for i in range(some):
            value, length = load_f32(h, row_step * r + token_step * load_i32(chosen, i)), load_i32(lengths, i)
            store_i32(lists, PANEL_ROWS * i + length, r)
            store_f32(shares, PANEL_ROWS * i + length, value)
            store_i32(lengths, i, length + (value != 0))
            fires |= value != 0
        used |= fires << r
    return used


@compiled
def decode_part(params: Parameters, kind: BlockType, row: int, width: int, target: int, scratch: int) -> None:
    """``width`` weights from address ``row`` on as float32 at ``target``."""
    clear(params, target, width)
    store_f32(scratch, _ONE, 1.0)
    call_add(params, kind, row, 0, 0, 0, 1, 1, scratch + 4 * _ONE, width, target, scratch)


@compiled
def add_panel(params: Parameters, panel: int, listed: int, shares: int, length: int, out: int, width: int) -> None:  # noqa: ARG001
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


@compiled
def column_start(params: Parameters, thread: int) -> int:
    """The first of the columns that a thread sums; that of the next thread ends them."""
    unit = PANEL_COLUMNS if params.width % PANEL_COLUMNS == 0 else UNIT
    return share_start(params, params.width, thread, params.threads, unit)


@compiled
def begin_sums(params: Parameters, thread: int, bias: int) -> None:
    """added = a bias, if there is one, else zeros; of all tokens, for this thread's columns."""
    first, end = column_start(params, thread), column_start(params, thread + 1)
    for t in range(params.tokens):
        into = row_at(params.added, t) + 4 * first
        clear(params, into, end - first)
        if bias:
            add_floats(params, bias + 4 * first, into, end - first)


@compiled
def sum_rows(
    params: Parameters, thread: int, tensor: Tensor, expert: int, some: int, h: int, row_step: int, token_step: int
) -> None:
    """added += activations x rows of a tensor as wide as the model, for the chosen tokens and this thread's columns.

    Args:
        h, row_step, token_step: as for `list_firing`.
    """
    size, first, end = tensor.row_bytes, column_start(params, thread), column_start(params, thread + 1)
    base, panel, scratch = (
        tensor.address + expert * tensor.expert_bytes,
        row_at(params.panel, thread),
        row_at(params.scratch, thread),
    )
    chosen, lists = row_at(params.chosen_tokens, thread), row_at(params.firing, thread)
    shares, lengths = row_at(params.firing_shares, thread), row_at(params.firing_counts, thread)
    for start in range(0, tensor.rows, PANEL_ROWS):
        rows = min(PANEL_ROWS, tensor.rows - start)
        used = list_firing(params, thread, some, rows, h + 4 * row_step * start, row_step, token_step)
        for c in range(first, end, PANEL_COLUMNS):
            width = min(PANEL_COLUMNS, end - c)
            for r in range(rows):
                if used >> r & 1:
                    row = base + (start + r) * size + size * c // params.width
                    decode_part(params, tensor.type, row, width, panel + 4 * PANEL_COLUMNS * r, scratch)
            for i in range(some):
                place, out = 4 * PANEL_ROWS * i, row_at(params.added, load_i32(chosen, i)) + 4 * c
                add_panel(params, panel, lists + place, shares + place, load_i32(lengths, i), out, width)
