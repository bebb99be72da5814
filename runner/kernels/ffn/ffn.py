"""The FFN half of a layer, as each thread runs it: which FFNs, for one token or a block, and with which down matrix."""

from ..compiling import compiled
from ..parameters import Layer, Parameters
from ..residual import normalise
from .block_ffn import ffn_of_block
from .matrix_ffn import ffn_by_matrix
from .routing import route
from .token_ffn import ffn_of_token


@compiled
def ffn(params: Parameters, thread: int, layer: Layer) -> None:
    """x += FFN(norm(x)) of a layer."""
    normalise(params, thread, layer.ffn_norm)
    route(params, thread, layer)
    if not params.transposed:
        ffn_by_matrix(params, thread, layer)
    elif params.tokens == 1:
        ffn_of_token(params, thread, layer)
    else:
        ffn_of_block(params, thread, layer)
