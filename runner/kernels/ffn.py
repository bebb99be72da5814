"""The FFN half of a layer, as each thread runs it: which FFNs, for one token or a block, and with which down matrix."""

from .access import at, number, tensor_of
from .blocks import ffn_of_block
from .compiling import compiled
from .elementwise import choose_experts
from .matrices import ffn_by_matrix
from .native import load_i64
from .neurons import ffn_of_token
from .parts import gather_all, multiply, normalise, ready, rows_of
from .tables import ADDRESS, CHOICE, CHOSEN, EXPERTS, NORMED, PREPARED, ROUTED, ROUTER, SHARE, TRANSPOSED


@compiled
def ffn(m: int, thread: int, threads: int, layer: int, tokens: int, mode: int, audit: int) -> None:
    """x += FFN(norm(x)) of a layer, in ``mode``; with ``audit``, neurons that were not predicted are computed too."""
    normalise(m, thread, threads, tokens, 2 * layer + 1)
    _route(m, thread, threads, layer, tokens)
    if not number(m, TRANSPOSED):
        ffn_by_matrix(m, thread, threads, layer, tokens)
    elif tokens == 1:
        ffn_of_token(m, thread, threads, layer, mode, audit)
    else:
        ffn_of_block(m, thread, threads, layer, tokens, mode, audit)


@compiled
def _route(m: int, thread: int, threads: int, layer: int, tokens: int) -> None:
    """Choose experts for the rows that the thread takes care of."""
    tensor = tensor_of(m, layer, ROUTER)
    if load_i64(tensor, ADDRESS) == 0:  # the buffers began with choice 0, share 1
        return
    first, end = rows_of(thread, threads, tokens)
    logits, experts = at(m, ROUTED, thread), number(m, EXPERTS)
    ready(m, thread, threads, tokens, tensor, at(m, NORMED, thread if tokens == 1 else 0), PREPARED, 0)
    for r in range(first, end):
        multiply(m, thread, tensor, 0, 0, 0, experts, at(m, NORMED, r), PREPARED, r, 0, 1, logits, 1, 0)
        choose_experts(logits, experts, number(m, CHOSEN), at(m, CHOICE, r), at(m, SHARE, r))
    if tokens > 1:
        gather_all(m, thread, threads)
