"""The neurons of one FFN that a thread owns: listed, then run in passes over gate, up and down rows.

A pass drops from the list what can add nothing: after the gate those whose gate is not positive, after up those whose
activation is zero. Dense mode drops none, and reads every row.
"""

from typing import Any

import numpy as np

from .kernels import ADDRESS, COLUMNS, EXPERT_BYTES, ROW_BLOCK, ROW_BYTES, TYPE, silu
from .rows import add_row, compiled, dot_row, prepare_input
from .tables import (
    DOWN,
    DOWN_ROWS,
    DRELU,
    FC2,
    FIRED,
    GATE,
    GATE_ROWS,
    MISSED,
    PREDICTED_ROWS,
    SWIGLU,
    UP,
    UP_ROWS,
)  # fmt: skip


@compiled
def prepare_normed(w: Any, b: Any, thread: int, tensor: Any) -> None:
    """Round the normed input for the vec_dot of a tensor, into the thread's own buffer."""
    x_D = b.normed_ND[thread]
    prepare_input(w.types, tensor[TYPE], x_D.ctypes.data, x_D.shape[0], b.prepared_N[thread].ctypes.data)


@compiled
def _product(w: Any, b: Any, thread: int, tensor: Any, expert: int, row: int) -> Any:
    """Row ``row`` of a tensor times the normed input, which is prepared for it."""
    address = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES] + row * tensor[ROW_BYTES]
    x, prepared = b.normed_ND[thread].ctypes.data, b.prepared_N[thread].ctypes.data
    return dot_row(w.types, tensor[TYPE], address, x, prepared, tensor[COLUMNS], b.one_N[thread])


@compiled
def activate(activation: int, gate: Any, up: Any) -> Any:
    """One neuron's activation: silu(gate)*up, relu(gate)*relu(up) or relu(gate)*up."""
    zero = np.float32(0)
    if activation == SWIGLU:
        return silu(gate) * up
    if activation == DRELU:
        return max(gate, zero) * max(up, zero)
    return max(gate, zero) * up


@compiled
def list_all(b: Any, thread: int, threads: int) -> int:
    """List every neuron that the thread owns; returns how many."""
    count, neurons = 0, b.gate_NF.shape[1]
    for start in range(thread * ROW_BLOCK, neurons, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, neurons)):
            b.active_NF[thread, count] = j
            count += 1
    return count


@compiled
def list_predicted(w: Any, b: Any, thread: int, threads: int, layer: int, k: int) -> int:
    """List the owned neurons of chosen expert ``k`` whose logit reaches the threshold; returns how many."""
    tensor, expert = w.tensors[layer, FC2], b.choice_NK[thread, k]
    threshold, rank, neurons = w.thresholds[layer, expert], tensor[COLUMNS], b.gate_NF.shape[1]
    x, prepared = b.hidden_KR[k].ctypes.data, b.prepared_hidden_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, rank, prepared)
    first, count = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES], 0
    for start in range(thread * ROW_BLOCK, neurons, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, neurons)):
            row = first + j * tensor[ROW_BYTES]
            if dot_row(w.types, tensor[TYPE], row, x, prepared, rank, b.one_N[thread]) >= threshold:
                b.active_NF[thread, count] = j
                count += 1
    b.counts[thread, layer, PREDICTED_ROWS] += count
    return count


@compiled
def run_listed(s: Any, w: Any, b: Any, thread: int, layer: int, k: int, count: int, skip: bool) -> None:
    """Add what the listed neurons of chosen expert ``k`` contribute to the thread's accumulator.

    Args:
        skip: leave out rows that can add nothing; False reads all of them.
    """
    counts, expert = b.counts[thread, layer], b.choice_NK[thread, k]
    counts[GATE_ROWS] += count
    count = _gate_pass(w, b, thread, layer, expert, count, skip)
    counts[UP_ROWS] += count
    count = _up_pass(s, w, b, thread, layer, expert, count, skip)
    counts[DOWN_ROWS] += count
    tensor = w.tensors[layer, DOWN]
    first = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES]
    for i in range(count):
        j = b.active_NF[thread, i]
        h = b.gate_NF[thread, j] * b.share_NK[thread, k]
        row = first + j * tensor[ROW_BYTES]
        add_row(w.types, tensor[TYPE], row, tensor[COLUMNS], h, b.partial_ND[thread], b.scratch_ND[thread])


@compiled
def _gate_pass(w: Any, b: Any, thread: int, layer: int, expert: int, count: int, skip: bool) -> int:
    tensor, active_F, gate_F, kept = w.tensors[layer, GATE], b.active_NF[thread], b.gate_NF[thread], 0
    prepare_normed(w, b, thread, tensor)
    for i in range(count):
        j = active_F[i]
        gate_F[j] = _product(w, b, thread, tensor, expert, j)
        if not skip or gate_F[j] > 0:
            active_F[kept] = j
            kept += 1
    return kept


@compiled
def _up_pass(s: Any, w: Any, b: Any, thread: int, layer: int, expert: int, count: int, skip: bool) -> int:
    """Turns ``gate_NF`` of the listed neurons into their activations."""
    tensor, active_F, gate_F, kept, fired = w.tensors[layer, UP], b.active_NF[thread], b.gate_NF[thread], 0, 0
    prepare_normed(w, b, thread, tensor)
    for i in range(count):
        j = active_F[i]
        h = activate(s.activation, gate_F[j], _product(w, b, thread, tensor, expert, j))
        gate_F[j] = h
        fired += h != 0
        if not skip or h != 0:
            active_F[kept] = j
            kept += 1
    b.counts[thread, layer, FIRED] += fired
    return kept


@compiled
def audit_rest(s: Any, w: Any, b: Any, thread: int, threads: int, layer: int, k: int, count: int) -> None:
    """Count the owned neurons that fire without being among the ``count`` listed ones, whose order is rising."""
    expert, neurons, at, missed = b.choice_NK[thread, k], b.gate_NF.shape[1], 0, 0
    active_F, gate_F = b.active_NF[thread], b.gate_NF[thread]
    prepare_normed(w, b, thread, w.tensors[layer, GATE])
    for start in range(thread * ROW_BLOCK, neurons, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, neurons)):
            gate_F[j] = _product(w, b, thread, w.tensors[layer, GATE], expert, j)
    prepare_normed(w, b, thread, w.tensors[layer, UP])
    for start in range(thread * ROW_BLOCK, neurons, threads * ROW_BLOCK):
        for j in range(start, min(start + ROW_BLOCK, neurons)):
            if at < count and active_F[at] == j:
                at += 1
            elif gate_F[j] > 0:
                up = _product(w, b, thread, w.tensors[layer, UP], expert, j)
                missed += activate(s.activation, gate_F[j], up) != 0
    b.counts[thread, layer, MISSED] += missed


@compiled
def plain_activations(s: Any, w: Any, b: Any, thread: int, threads: int, layer: int, k: int) -> None:
    """The owned activations of chosen expert ``k``, times its share, into ``h_KF``; every row is read."""
    counts, expert = b.counts[thread, layer], b.choice_NK[thread, k]
    count = list_all(b, thread, threads)
    counts[GATE_ROWS] += count
    counts[UP_ROWS] += count
    counts[DOWN_ROWS] += count
    _gate_pass(w, b, thread, layer, expert, count, False)
    _up_pass(s, w, b, thread, layer, expert, count, False)
    for i in range(count):
        j = b.active_NF[thread, i]
        b.h_KF[k, j] = b.gate_NF[thread, j] * b.share_NK[thread, k]
