"""What a compiled step works on, as one table of numbers and addresses; and every buffer, allocated once.

Compiled code takes the table's address and nothing else, so that it is compiled and called fast. Shape suffixes: L
layers, D model width, F neurons, E experts, K experts per token, R predictor rank, V vocabulary, P positions, S slots
of the cache, H half of a head's rotated dimensions, N threads, T tokens of a block, X threads or tokens: on one token
every thread works in a row of its own, of a block every token has a row.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.spec import ModelSpec
from .access import NUMBERS
from .elementwise import DRELU, REGLU, SWIGLU
from .products import SCRATCH_BYTES
from .rows import input_bytes

Array = npt.NDArray[Any]
BLOCK = 128
"""Tokens of a prompt that run through the model together."""

# Roles: the second index of the weight table. The last row, after the layers, holds TOKEN_EMBD and OUTPUT.
Q, K, V, O, ROUTER, GATE, UP, DOWN, FC1, FC2 = range(10)  # noqa: E741
ROLES = 10
TOKEN_EMBD, OUTPUT = 0, 1
# Fields of a tensor in it.
ADDRESS, TYPE, ROWS, COLUMNS, ROW_BYTES, EXPERT_BYTES = range(6)

DENSE, EXACT, PREDICTED = range(3)
MODES = {"dense": DENSE, "exact": EXACT, "predicted": PREDICTED}
ACTIVATIONS = {"swiglu": SWIGLU, "drelu": DRELU, "reglu": REGLU}

# Counted per thread and layer: rows read of each matrix, neurons whose activation was not zero, neurons predicted to
# fire, and under audit those that fired without being predicted.
GATE_ROWS, UP_ROWS, DOWN_ROWS, FIRED, PREDICTED_ROWS, MISSED = range(6)
COUNTS = 6

PANEL_ROWS, PANEL_COLUMNS = 64, 256  # of transposed down rows decoded at once for a block
LINE = 16  # int32 in a cache line
LEAVES = 32  # of the tree that a token's neurons are summed in (leaves.py); a power of two
SUMS, DEPTH = 10, 6  # that a thread may hold at once: at most two nodes a size; and one a size

# Numbers of the table.
(
    LAYERS, WIDTH, NEURONS, HEADS, KV_HEADS, HEAD_DIM, WINDOW, SLOTS, CACHE_TYPE, CACHE_ROW, ACTIVATION, TRANSPOSED,
    NORMED_PREDICTORS, EXPERTS, CHOSEN, ROTATED, EPS,
) = range(17)  # fmt: skip
# Arrays of the table: after the numbers, an address and the bytes of a row each.
ARRAYS = (
    "tensors",  # [L + 1, ROLES, TENSOR_FIELDS] int64; address 0 where there is no such tensor
    "types",  # the type table of rows.py
    "norms",  # [2 L + 1, D]: attention and FFN norm of each layer, then the output's
    "thresholds",  # [L, E]; NaN where an FFN has no predictor
    "cos", "sin",  # [P, H]
    "sync",  # barrier.py
    "x", "normed",  # [X, D]
    "prepared",  # [X, bytes]: an input in the form that rows meet
    "prepared_hidden",  # the same of the second predictor matrix's or a down matrix's input
    "query", "key", "value", "attended",  # [T, ..]
    "added", "other",  # [T, D]: what attention or FFN add to the residual; what one of several experts adds
    "keys", "values",  # [L, kv heads, S, bytes]
    "hidden",  # of predictors: a row per token, or of one token a row per chosen expert
    "logits", "gate", "up",  # [F, BLOCK] for a block ([T, F] if down is as llama.cpp has it), [K, F] for a token
    "listed",  # [N, K F] int32: neurons that a thread found for one token
    "found",  # [N, K lines] int32: how many
    "mine",  # [N, K F] int32: of all that were found, a thread's share
    "ends",  # [N, K LEAVES] int32: where in it the thread's leaves end
    "tokens",  # [N, 2 T] int32: of a block, an FFN's tokens, then those for which a neuron may fire
    "choice",  # [X, K] int64
    "share",  # [X, K]
    "router",  # [N, E]
    "partial",  # [N, SUMS D]: of a thread's leaves
    "whole",  # [N, DEPTH D]: of all threads'
    "panel",  # [N, PANEL_ROWS x PANEL_COLUMNS]: decoded down rows
    "firing", "firing_shares", "firing_counts",  # [N, T x PANEL_ROWS]: which of them a token needs, with what weight
    "scores",  # [N, heads that share keys x (S + 32)]
    "scratch",  # [N, bytes]: of products.py
    "queries",  # [N, heads that share keys x bytes]
    "counts",  # [N, L, COUNTS] int64
    "shifts",  # [L]: up to which a gate's, and under dReLU an up's, value counts as zero
)  # fmt: skip
(
    TENSORS, TYPES, NORMS, THRESHOLDS, COS, SIN, SYNC, X, NORMED, PREPARED, PREPARED_HIDDEN, QUERY, KEY, VALUE,
    ATTENDED, ADDED, OTHER, KEYS, VALUES, HIDDEN, LOGITS, GATES, UPS, LISTED, FOUND, MINE, ENDS, TOKENS, CHOICE, SHARE,
    ROUTED, PARTIAL, WHOLE, PANEL, FIRING, FIRING_SHARES, FIRING_COUNTS, SCORES, SCRATCH, QUERIES, COUNTED, SHIFTS,
) = range(len(ARRAYS))  # fmt: skip


def new_buffers(spec: ModelSpec, slots: int, cache_row: int, rank: int, threads: int, type_names: set[str]) -> Any:
    """Room for ``slots`` cached positions and ``threads`` threads. The cache's pages cost memory once they are written.

    Args:
        cache_row: bytes of a key of one head.
        rank: the largest rank of a predictor, 0 without.
        type_names: of all weights, for the size of prepared inputs.
    """
    D, F, T, K, N = spec.width, spec.neurons, BLOCK, max(1, spec.experts_per_token), threads
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    group, X, lines = -(-spec.heads // spec.kv_heads), max(BLOCK, threads), max(BLOCK, K)
    widest, inner = max(D, heads), max(F, rank)
    cache = (spec.layers, spec.kv_heads * slots * cache_row)

    def floats(*shape: int) -> Array:
        return _aligned(1, 4 * math.prod(shape))[0, : 4 * math.prod(shape)].view(np.float32).reshape(shape)

    def ints(*shape: int) -> Array:
        return np.zeros(shape, np.int32)

    return {
        "x": floats(X, D), "normed": floats(X, D), "prepared": _aligned(X, input_bytes(widest, type_names)),
        "prepared_hidden": _aligned(X, input_bytes(inner, type_names)), "query": floats(T, heads), "key": floats(T, kv),
        "value": floats(T, kv), "attended": floats(T, heads), "added": floats(T, D),
        "other": floats(T if spec.experts else 1, D), "keys": _aligned(*cache),
        "values": _aligned(*cache), "hidden": floats(lines, max(1, rank)), "logits": floats(lines, F),
        "gate": floats(lines, F), "up": floats(lines, F), "listed": ints(N, K * F), "found": ints(N, K * LINE),
        "mine": ints(N, K * F), "ends": ints(N, K * LEAVES), "tokens": ints(N, 2 * T),
        "choice": np.zeros((X, K), np.int64), "share": np.ones((X, K), np.float32),
        "router": floats(N, max(1, spec.experts)), "partial": floats(N, SUMS * D),
        "whole": floats(N, DEPTH * D),
        "panel": floats(N, PANEL_ROWS * PANEL_COLUMNS), "firing": ints(N, T * PANEL_ROWS),
        "firing_shares": floats(N, T * PANEL_ROWS), "firing_counts": ints(N, T),
        "scores": floats(N, group * (slots + 32)), "scratch": _aligned(N, SCRATCH_BYTES + 4 * widest),
        "queries": _aligned(N, group * input_bytes(spec.head_dim, {"Q8_0"})),
        "counts": np.zeros((N, spec.layers, COUNTS), np.int64),
    }  # fmt: skip


def _aligned(rows: int, size: int) -> Array:
    """Zero bytes [rows, size up to a multiple of 64] that begin at a cache line."""
    size = -(-size // 64) * 64
    whole = np.zeros(rows * size + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + rows * size].reshape(rows, size)


def new_table(numbers: Mapping[int, int], eps: float, arrays: Mapping[str, Array]) -> npt.NDArray[np.int64]:
    """The table of a model. It holds addresses only: the arrays must outlive it."""
    table = np.zeros(NUMBERS + 2 * len(ARRAYS), np.int64)
    for which, value in numbers.items():
        table[which] = value
    table[EPS : EPS + 1].view(np.float64)[0] = eps
    for i, name in enumerate(ARRAYS):
        array = arrays[name]
        assert array.flags.c_contiguous, name
        table[NUMBERS + 2 * i : NUMBERS + 2 * i + 2] = array.ctypes.data, array.strides[0]
    return table
