"""The small kernels of a step: norms, matrix rows, rotation, attention, expert choice. Slow twins: tests/runner.

Rows are dealt to threads in blocks of ROW_BLOCK, in turn, so that neurons ordered by how often they fire spread evenly.
Shape suffixes: D model width, H head dimension, P positions, E experts, K experts per token.
"""

from typing import Any

import numpy as np

from .rows import compiled, compiled_sum, dot_f32, dot_row

ROW_BLOCK = 16
# Fields of a tensor in the weight table.
ADDRESS, TYPE, ROWS, COLUMNS, ROW_BYTES, EXPERT_BYTES = range(6)
TENSOR_FIELDS = 6
SWIGLU, DRELU, REGLU = range(3)


@compiled_sum
def mean_square(x_D: Any) -> Any:
    """The mean of the squares."""
    total = np.float32(0)
    for i in range(x_D.shape[0]):
        total += x_D[i] * x_D[i]
    return total / np.float32(x_D.shape[0])


@compiled
def rms_norm(x_D: Any, weight_D: Any, eps: float, out_D: Any) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight."""
    scale = np.float32(1.0 / np.sqrt(mean_square(x_D) + eps))
    for i in range(x_D.shape[0]):
        out_D[i] = x_D[i] * scale * weight_D[i]


@compiled
def matrix_rows(
    types: Any,
    tensor: Any,
    expert: int,
    x: int,
    prepared: int,
    thread: int,
    threads: int,
    add: bool,
    out: Any,
    one: Any,
) -> None:
    """out[r] = row r . x (or += with ``add``) for this thread's rows of a tensor of the weight table.

    Args:
        x, prepared: addresses of the input and of its `prepare_input` form for the tensor's type.
        one: float32 [1] of this thread, for vec_dot's result.
    """
    first = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES]
    rows, columns, size, type_id = tensor[ROWS], tensor[COLUMNS], tensor[ROW_BYTES], tensor[TYPE]
    for start in range(thread * ROW_BLOCK, rows, threads * ROW_BLOCK):
        for r in range(start, min(start + ROW_BLOCK, rows)):
            value = dot_row(types, type_id, first + r * size, x, prepared, columns, one)
            out[r] = out[r] + value if add else value


@compiled
def rotate_rows(x: Any, head_dim: int, cos_H: Any, sin_H: Any, thread: int, threads: int) -> None:
    """Turn neighbouring pairs (2i, 2i+1) of each head by the angles of a position; this thread's rows of ``x``."""
    rows, rotated = x.shape[0], 2 * cos_H.shape[0]
    for start in range(thread * ROW_BLOCK, rows, threads * ROW_BLOCK):
        for r in range(start, min(start + ROW_BLOCK, rows), 2):
            within = r % head_dim
            if within < rotated:
                a, b, c, s = x[r], x[r + 1], cos_H[within // 2], sin_H[within // 2]
                x[r], x[r + 1] = a * c - b * s, a * s + b * c


@compiled
def store_rows(x: Any, head_dim: int, cache: Any, position: int, thread: int, threads: int) -> None:
    """Put this thread's rows of a new key or value into the cache [kv heads, P, H] of its layer."""
    rows = x.shape[0]
    for start in range(thread * ROW_BLOCK, rows, threads * ROW_BLOCK):
        for r in range(start, min(start + ROW_BLOCK, rows)):
            cache[r // head_dim, position, r % head_dim] = x[r]


@compiled
def attend(q_H: Any, keys_PH: Any, values_PH: Any, first: int, last: int, scores_P: Any, out_H: Any) -> None:
    """Softmax attention of one head's query over positions ``first`` to ``last``, both inclusive."""
    H = q_H.shape[0]
    scale = np.float32(1.0 / np.sqrt(H))
    q, keys, step = q_H.ctypes.data, keys_PH.ctypes.data, 4 * H
    top = np.float32(-np.inf)
    for p in range(first, last + 1):
        scores_P[p] = dot_f32(keys + p * step, q, H) * scale
        top = max(top, scores_P[p])
    total = np.float32(0)
    for p in range(first, last + 1):
        scores_P[p] = np.exp(scores_P[p] - top)
        total += scores_P[p]
    for i in range(H):
        out_H[i] = np.float32(0)
    for p in range(first, last + 1):
        share = scores_P[p] / total
        for i in range(H):
            out_H[i] += share * values_PH[p, i]


@compiled
def choose_experts(logits_E: Any, choice_K: Any, share_K: Any) -> None:
    """The K experts with the largest logits and the softmax over those K, as Mixtral routes; uses ``logits_E`` up."""
    K = choice_K.shape[0]
    for k in range(K):
        best = 0
        for e in range(1, logits_E.shape[0]):
            if logits_E[e] > logits_E[best]:
                best = e
        choice_K[k], share_K[k] = best, logits_E[best]
        logits_E[best] = -np.inf
    top, total = share_K[0], np.float32(0)
    for k in range(K):
        share_K[k] = np.exp(share_K[k] - top)
        total += share_K[k]
    for k in range(K):
        share_K[k] /= total


@compiled
def list_rows(thread: int, threads: int, listed_F: Any) -> Any:
    """List every neuron that the thread owns, rising; returns how many. F is the list's length."""
    count, F = 0, listed_F.shape[0]
    for start in range(thread * ROW_BLOCK, F, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, F)):
            listed_F[count] = j
            count += 1
    return count


@compiled
def list_rest(thread: int, threads: int, listed_F: Any, listed: int, rest_F: Any) -> Any:
    """List the owned neurons that are not among the first ``listed`` of a rising list; returns how many."""
    count, at, F = 0, 0, listed_F.shape[0]
    for start in range(thread * ROW_BLOCK, F, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, F)):
            if at < listed and listed_F[at] == j:
                at += 1
            else:
                rest_F[count] = j
                count += 1
    return count


@compiled
def listed_products(
    types: Any, tensor: Any, expert: int, x: int, prepared: int, listed_F: Any, count: int, out_F: Any, one: Any
) -> None:
    """out[j] = row j . x for the first ``count`` listed rows of a tensor; arguments as `matrix_rows`."""
    first, size = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES], tensor[ROW_BYTES]
    type_id, columns = tensor[TYPE], tensor[COLUMNS]
    for i in range(count):
        j = listed_F[i]
        out_F[j] = dot_row(types, type_id, first + j * size, x, prepared, columns, one)


@compiled
def list_above(listed_F: Any, count: int, values_F: Any, threshold: float) -> Any:
    """Keep the listed neurons whose value reaches the threshold; returns how many."""
    kept = 0
    for i in range(count):
        j = listed_F[i]
        listed_F[kept] = j
        kept += values_F[j] >= threshold
    return kept


@compiled
def keep_positive(listed_F: Any, count: int, values_F: Any) -> Any:
    """Keep the listed neurons whose value is positive; returns how many."""
    kept = 0
    for i in range(count):
        j = listed_F[i]
        listed_F[kept] = j
        kept += values_F[j] > 0
    return kept


@compiled
def keep_nonzero(listed_F: Any, count: int, values_F: Any) -> Any:
    """Keep the listed neurons whose value is not zero; returns how many."""
    kept = 0
    for i in range(count):
        j = listed_F[i]
        listed_F[kept] = j
        kept += values_F[j] != 0
    return kept


@compiled
def activate(activation: int, listed_F: Any, count: int, gate_F: Any, up_F: Any, share: float) -> Any:
    """Turn the listed neurons' ``gate_F`` into their activations times ``share``; returns how many are not zero.

    silu(gate) * up, relu(gate) * relu(up), or relu(gate) * up, as tables.py numbers them.
    """
    fired, zero, one = 0, np.float32(0), np.float32(1)
    for i in range(count):
        j = listed_F[i]
        gate, up = gate_F[j], up_F[j]
        if activation == SWIGLU:
            h = gate / (one + np.exp(-gate)) * up
        elif activation == DRELU:
            h = max(gate, zero) * max(up, zero)
        else:
            h = max(gate, zero) * up
        fired += h != 0
        gate_F[j] = h * share
    return fired
