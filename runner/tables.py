"""What a compiled step works on: the shape, the weights as addresses, and every buffer, allocated once.

Shape suffixes: L layers, D model width, F neurons, E experts, K experts per token, R predictor rank, V vocabulary,
P positions, H half of a head's rotated dimensions, N threads.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..convert.spec import ModelSpec
from .kernels import DRELU, REGLU, SWIGLU
from .rows import input_bytes

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# Roles: the second index of the weight table. The last row, after the layers, holds TOKEN_EMBD and OUTPUT.
Q, K, V, O, ROUTER, GATE, UP, DOWN, FC1, FC2 = range(10)  # noqa: E741
ROLES = 10
TOKEN_EMBD, OUTPUT = 0, 1

DENSE, EXACT, PREDICTED = range(3)
MODES = {"dense": DENSE, "exact": EXACT, "predicted": PREDICTED}
ACTIVATIONS = {"swiglu": SWIGLU, "drelu": DRELU, "reglu": REGLU}

# Counted per thread and layer: rows read of each matrix, neurons whose activation was not zero, neurons predicted to
# fire, and under audit those that fired without being predicted.
GATE_ROWS, UP_ROWS, DOWN_ROWS, FIRED, PREDICTED_ROWS, MISSED = range(6)
COUNTS = 6


class Shape(NamedTuple):
    """The numbers of a model."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    """Positions that attention sees; the whole context where the model has no sliding window."""
    activation: int
    transposed: int
    """Whether the down matrix is stored transposed, one row a neuron."""
    normed_predictors: int
    """Whether predictors see the FFN's input after its norm (ours) or before (PowerInfer's)."""
    eps: float


class Weights(NamedTuple):
    """The model: addresses into the mapped file, and the little that is kept as arrays."""

    tensors: Ints
    """[L + 1, ROLES, TENSOR_FIELDS]; address 0 where there is no such tensor."""
    types: Ints
    norms: Floats
    """[2 L + 1, D]: attention and FFN norm of each layer, then the output's."""
    thresholds: Floats
    """[L, experts]; NaN where an FFN has no predictor."""
    cos: Floats
    """[P, H]"""
    sin: Floats


class Buffers(NamedTuple):
    """Activations, the KV cache, counters. What begins with N belongs to one thread each."""

    x_D: Floats
    query: Floats
    key: Floats
    value: Floats
    attended: Floats
    keys: Floats
    """[L, kv heads, P, head_dim]"""
    values: Floats
    hidden_KR: Floats
    h_KF: Floats
    normed_ND: Floats
    partial_ND: Floats
    scratch_ND: Floats
    scores_NP: Floats
    gate_NF: Floats
    up_NF: Floats
    active_NF: npt.NDArray[np.int32]
    rest_NF: npt.NDArray[np.int32]
    router_NE: Floats
    choice_NK: Ints
    share_NK: Floats
    one_N: Floats
    """[N, 16]: vec_dot's result, a cache line each."""
    prepared_N: npt.NDArray[np.uint8]
    """[N, bytes]: an input rounded for vec_dot."""
    prepared_hidden_N: npt.NDArray[np.uint8]
    """[N, bytes]: the same for the input of the second predictor matrix or of a down matrix."""
    counts: Ints
    """[N, L, COUNTS]"""


def new_buffers(spec: ModelSpec, context: int, rank: int, threads: int) -> Buffers:
    """Room for ``context`` positions and ``threads`` threads. The cache's pages cost memory once they are written.

    Args:
        rank: the largest rank of a predictor, 0 without.
    """
    experts, K, layers = max(1, spec.experts), max(1, spec.experts_per_token), spec.layers
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    widest = max(spec.width, heads)
    inner = max(spec.neurons, rank)

    def floats(*shape: int) -> Floats:
        return np.zeros(shape, np.float32)

    return Buffers(
        x_D=floats(spec.width),
        query=floats(heads),
        key=floats(kv),
        value=floats(kv),
        attended=floats(heads),
        keys=np.empty((layers, spec.kv_heads, context, spec.head_dim), np.float32),
        values=np.empty((layers, spec.kv_heads, context, spec.head_dim), np.float32),
        hidden_KR=floats(K, max(1, rank)),
        h_KF=floats(K, spec.neurons),
        normed_ND=floats(threads, spec.width),
        partial_ND=floats(threads, spec.width),
        scratch_ND=floats(threads, widest),
        scores_NP=floats(threads, context),
        gate_NF=floats(threads, spec.neurons),
        up_NF=floats(threads, spec.neurons),
        active_NF=np.zeros((threads, spec.neurons), np.int32),
        rest_NF=np.zeros((threads, spec.neurons), np.int32),
        router_NE=floats(threads, experts),
        choice_NK=np.zeros((threads, K), np.int64),
        share_NK=floats(threads, K),
        one_N=floats(threads, 16),
        prepared_N=np.zeros((threads, input_bytes(widest)), np.uint8),
        prepared_hidden_N=np.zeros((threads, input_bytes(inner)), np.uint8),
        counts=np.zeros((threads, layers, COUNTS), np.int64),
    )
