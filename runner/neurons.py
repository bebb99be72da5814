"""The neurons of one FFN that a thread owns: listed, then run in passes over gate, up and down rows.

A pass drops from the list what can add nothing: after the gate those whose gate is not positive, after up those whose
activation is zero. Dense mode drops none, and reads every row.
"""

from typing import Any

import numpy as np

from .kernels import (
    ADDRESS,
    COLUMNS,
    EXPERT_BYTES,
    ROW_BYTES,
    TYPE,
    activate,
    keep_nonzero,
    keep_positive,
    list_above,
    list_rest,
    list_rows,
    listed_products,
)  # fmt: skip
from .rows import add_row, phase, prepare_input
from .tables import DOWN, DOWN_ROWS, FC2, FIRED, GATE, GATE_ROWS, MISSED, PREDICTED_ROWS, UP, UP_ROWS


@phase
def prepare_normed(w: Any, b: Any, thread: int, tensor: Any) -> None:
    """Round the normed input for the vec_dot of a tensor, into the thread's own buffer."""
    x_D = b.normed_ND[thread]
    prepare_input(w.types, tensor[TYPE], x_D.ctypes.data, x_D.shape[0], b.prepared_N[thread].ctypes.data)


@phase
def _products(w: Any, b: Any, thread: int, tensor: Any, expert: int, listed_F: Any, count: int, out_F: Any) -> None:
    """out[j] = row j of a tensor times the normed input, for the listed rows."""
    prepare_normed(w, b, thread, tensor)
    x, prepared = b.normed_ND[thread].ctypes.data, b.prepared_N[thread].ctypes.data
    listed_products(w.types, tensor, expert, x, prepared, listed_F, count, out_F, b.one_N[thread])


@phase
def list_predicted(w: Any, b: Any, thread: int, threads: int, layer: int, k: int) -> Any:
    """List the owned neurons of chosen expert ``k`` whose logit reaches the threshold; returns how many."""
    tensor, expert = w.tensors[layer, FC2], b.choice_NK[thread, k]
    x, prepared = b.hidden_KR[k].ctypes.data, b.prepared_hidden_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, tensor[COLUMNS], prepared)
    listed_F, logits_F = b.active_NF[thread], b.gate_NF[thread]
    count = list_rows(thread, threads, listed_F)
    listed_products(w.types, tensor, expert, x, prepared, listed_F, count, logits_F, b.one_N[thread])
    count = list_above(listed_F, count, logits_F, w.thresholds[layer, expert])
    b.counts[thread, layer, PREDICTED_ROWS] += count
    return count


@phase
def run_listed(s: Any, w: Any, b: Any, thread: int, layer: int, k: int, count: int, skip: bool) -> None:
    """Add what the listed neurons of chosen expert ``k`` contribute to the thread's accumulator.

    Args:
        skip: leave out rows that can add nothing; False reads all of them.
    """
    expert, counts = b.choice_NK[thread, k], b.counts[thread, layer]
    listed_F, gate_F, up_F = b.active_NF[thread], b.gate_NF[thread], b.up_NF[thread]
    counts[GATE_ROWS] += count
    _products(w, b, thread, w.tensors[layer, GATE], expert, listed_F, count, gate_F)
    kept = keep_positive(listed_F, count, gate_F) if skip else count
    counts[UP_ROWS] += kept
    _products(w, b, thread, w.tensors[layer, UP], expert, listed_F, kept, up_F)
    counts[FIRED] += activate(s.activation, listed_F, kept, gate_F, up_F, b.share_NK[thread, k])
    kept = keep_nonzero(listed_F, kept, gate_F) if skip else kept
    counts[DOWN_ROWS] += kept
    tensor = w.tensors[layer, DOWN]
    first, size, type_id = tensor[ADDRESS] + expert * tensor[EXPERT_BYTES], tensor[ROW_BYTES], tensor[TYPE]
    partial_D, scratch_D = b.partial_ND[thread], b.scratch_ND[thread]
    for i in range(kept):
        j = listed_F[i]
        add_row(w.types, type_id, first + j * size, tensor[COLUMNS], gate_F[j], partial_D, scratch_D)


@phase
def audit_rest(s: Any, w: Any, b: Any, thread: int, threads: int, layer: int, k: int, count: int) -> None:
    """Count the owned neurons that fire without being among the ``count`` listed ones."""
    expert, rest_F, gate_F, up_F = b.choice_NK[thread, k], b.rest_NF[thread], b.gate_NF[thread], b.up_NF[thread]
    others = list_rest(thread, threads, b.active_NF[thread], count, rest_F)
    _products(w, b, thread, w.tensors[layer, GATE], expert, rest_F, others, gate_F)
    others = keep_positive(rest_F, others, gate_F)
    _products(w, b, thread, w.tensors[layer, UP], expert, rest_F, others, up_F)
    b.counts[thread, layer, MISSED] += activate(s.activation, rest_F, others, gate_F, up_F, np.float32(1))


@phase
def plain_activations(s: Any, w: Any, b: Any, thread: int, threads: int, layer: int, k: int) -> None:
    """The owned activations of chosen expert ``k``, times its share, into ``h_KF``; every row is read."""
    expert, counts = b.choice_NK[thread, k], b.counts[thread, layer]
    listed_F, gate_F, up_F = b.active_NF[thread], b.gate_NF[thread], b.up_NF[thread]
    count = list_rows(thread, threads, listed_F)
    counts[GATE_ROWS] += count
    counts[UP_ROWS] += count
    counts[DOWN_ROWS] += count
    _products(w, b, thread, w.tensors[layer, GATE], expert, listed_F, count, gate_F)
    _products(w, b, thread, w.tensors[layer, UP], expert, listed_F, count, up_F)
    counts[FIRED] += activate(s.activation, listed_F, count, gate_F, up_F, b.share_NK[thread, k])
    for i in range(count):
        b.h_KF[k, listed_F[i]] = gate_F[listed_F[i]]
