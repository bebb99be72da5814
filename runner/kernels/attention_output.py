"""Attention's output by its inputs: rows of `attn_output_t`, of which a token of predicted mode reads a share.

Row i is what input i, a number that some head attended to, adds to the residual. Small inputs add little (TEAL, arXiv
2408.14690): a token keeps the largest, and rows of the others are not read. All other modes keep every input.
"""

from .barrier import meet
from .compiling import compiled
from .matrix_products import add_listed
from .memory import load_i32, store_f32, store_i32
from .panel_sums import begin_sums, sum_rows
from .parameters import DENSE, PREDICTED, Layer, Parameters, counts_at, row_at
from .reduction_tree import add_sums, first_leaf, join_sums, leaf_start, sum_at
from .residual import add_to_residual, clear
from .simd.float_vectors import count_large
from .work_shares import token_start

_SIZE = 2**31 - 1  # of a float's bits, those of its size: as whole numbers they are in the order of the sizes
_COARSEST, _FINEST = 30, 15  # the bits that are looked at: sizes that differ by less than 1/256 may count as equal


@compiled
def least_kept(params: Parameters, x: int, count: int, kept: int) -> int:  # noqa: ARG001
    """A size, as bits, that at least ``kept`` of ``count`` floats reach, and hardly any more."""
    least, whole = 0, count // 64
    for bit in range(_COARSEST, _FINEST - 1, -1):
        tried = least | 1 << bit
        reached = count_large(x, whole, tried)
        for i in range(64 * whole, count):
            reached += (load_i32(x, i) & _SIZE) >= tried
        if reached >= kept:
            least = tried
    return least


@compiled
def list_largest(params: Parameters, x: int, count: int, kept: int, listed: int) -> int:
    """List at least ``kept`` of ``count`` floats, the largest by size, in their order; returns how many."""
    least, found = least_kept(params, x, count, kept), 0
    for i in range(count):
        store_i32(listed, found, i)
        found += (load_i32(x, i) & _SIZE) >= least
    return found


@compiled
def keep_largest(params: Parameters, x: int, count: int, kept: int) -> int:
    """Set the others to zero; returns how many are kept."""
    least, found = least_kept(params, x, count, kept), 0
    for i in range(count):
        large = (load_i32(x, i) & _SIZE) >= least
        found += large
        if not large:
            store_f32(x, i, 0.0)
    return found


@compiled
def leaves_out(params: Parameters) -> int:
    """Whether (1 or 0) tokens leave inputs out."""
    return 1 if params.mode == PREDICTED and params.kept_inputs < params.heads * params.head_dim else 0


@compiled
def output_of_token(params: Parameters, thread: int, layer: Layer) -> None:
    """x += attn_output . attended of one token, in the tree of reduction_tree.py."""
    x, some, listed, held = params.attended.address, params.heads * params.head_dim, 0, 0
    if leaves_out(params):
        listed = row_at(params.largest, thread)
        some = list_largest(params, x, some, params.kept_inputs, listed)
    first, end = first_leaf(params, thread), first_leaf(params, thread + 1)
    start, last = leaf_start(params, some, first), leaf_start(params, some, end)
    counts_at(row_at(params.counts, thread), layer.index).attended += last - start
    for leaf in range(first, end):
        stop, into = leaf_start(params, some, leaf + 1), sum_at(params, thread, held)
        clear(params, into, params.width)
        add_listed(params, thread, layer.attn_output, 0, listed, start, stop - start, last, x, into)
        held, start = join_sums(params, thread, leaf, held + 1), stop
    add_sums(params, thread, layer.attn_output_bias, layer.attn_post_norm)
    if params.mode == DENSE:  # where the FFN's sums come before the threads meet again
        meet(params, thread)


@compiled
def output_of_block(params: Parameters, thread: int, layer: Layer) -> None:
    """The same of a block of tokens."""
    inputs, chosen = params.heads * params.head_dim, row_at(params.chosen_tokens, thread)
    first, end = token_start(params, thread), token_start(params, thread + 1)
    counts = counts_at(row_at(params.counts, thread), layer.index)
    if leaves_out(params):
        for t in range(first, end):
            counts.attended += keep_largest(params, row_at(params.attended, t), inputs, params.kept_inputs)
        meet(params, thread)
    else:
        counts.attended += (end - first) * inputs
    for t in range(params.tokens):
        store_i32(chosen, t, t)
    begin_sums(params, thread, layer.attn_output_bias)
    sum_rows(params, thread, layer.attn_output, 0, params.tokens, params.attended.address, 1, inputs)
    meet(params, thread)
    add_to_residual(params, thread, layer.attn_post_norm)
