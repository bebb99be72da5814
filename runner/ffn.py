"""The FFN half of a layer, as each thread runs it: dense, exact or predicted, one FFN or the chosen experts.

Each thread sums what its neurons add to the residual in an accumulator of its own; the sums are added in the order of
the threads, so the result is the same every time for a given number of threads.
"""

from typing import Any

import numpy as np

from .barrier import meet
from .kernels import ADDRESS, ROW_BLOCK, ROWS, TYPE, choose_experts, list_rows, matrix_rows, rms_norm
from .neurons import audit_rest, list_predicted, plain_activations, prepare_normed, run_listed
from .rows import phase, prepare_input
from .tables import DENSE, DOWN, FC1, PREDICTED, ROUTER


@phase
def ffn(s: Any, w: Any, b: Any, sync: Any, thread: int, threads: int, layer: int, mode: int, audit: int) -> None:
    """x += FFN(norm(x)) of a layer, in ``mode``; with ``audit``, neurons that were not predicted are computed too."""
    rms_norm(b.x_D, w.norms[2 * layer + 1], s.eps, b.normed_ND[thread])
    _route(w, b, thread, layer)
    if s.transposed:
        _by_neuron(s, w, b, sync, thread, threads, layer, mode, audit)
    else:
        _by_matrix(s, w, b, sync, thread, threads, layer)
    meet(sync, thread, threads)


@phase
def _route(w: Any, b: Any, thread: int, layer: int) -> None:
    """Choose experts; every thread for itself, with the same outcome. A dense FFN is expert 0 with share 1."""
    tensor = w.tensors[layer, ROUTER]
    if tensor[ADDRESS] == 0:
        b.choice_NK[thread, 0], b.share_NK[thread, 0] = 0, np.float32(1)
        return
    prepare_normed(w, b, thread, tensor)
    x, prepared = b.normed_ND[thread].ctypes.data, b.prepared_N[thread].ctypes.data
    matrix_rows(w.types, tensor, 0, x, prepared, 0, 1, False, b.router_NE[thread], b.one_N[thread])
    choose_experts(b.router_NE[thread], b.choice_NK[thread], b.share_NK[thread])


@phase
def _by_neuron(s: Any, w: Any, b: Any, sync: Any, thread: int, threads: int, layer: int, mode: int, audit: int) -> None:
    """With a transposed down matrix: neuron by neuron, so that rows can be left out."""
    foreseen = mode == PREDICTED and w.tensors[layer, FC1, ADDRESS] != 0
    if foreseen:
        _predictor_hidden(s, w, b, thread, threads, layer)
        meet(sync, thread, threads)
    partial_D = b.partial_ND[thread]
    for i in range(partial_D.shape[0]):
        partial_D[i] = np.float32(0)
    for k in range(b.choice_NK.shape[1]):
        if foreseen and not np.isnan(w.thresholds[layer, b.choice_NK[thread, k]]):
            count = list_predicted(w, b, thread, threads, layer, k)
            if audit:
                audit_rest(s, w, b, thread, threads, layer, k, count)
        else:
            count = list_rows(thread, threads, b.active_NF[thread])
        run_listed(s, w, b, thread, layer, k, count, mode != DENSE)
    meet(sync, thread, threads)
    for start in range(thread * ROW_BLOCK, s.width, threads * ROW_BLOCK):
        for i in range(start, min(start + ROW_BLOCK, s.width)):
            total = np.float32(0)
            for other in range(threads):
                total += b.partial_ND[other, i]
            b.x_D[i] += total


@phase
def _predictor_hidden(s: Any, w: Any, b: Any, thread: int, threads: int, layer: int) -> None:
    """relu(fc1 . x) of every chosen expert's predictor; this thread's rows."""
    tensor = w.tensors[layer, FC1]
    x_D = b.normed_ND[thread] if s.normed_predictors else b.x_D
    x, prepared = x_D.ctypes.data, b.prepared_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, x_D.shape[0], prepared)
    for k in range(b.choice_NK.shape[1]):
        hidden_R, rows = b.hidden_KR[k], tensor[ROWS]
        expert = b.choice_NK[thread, k]
        matrix_rows(w.types, tensor, expert, x, prepared, thread, threads, False, hidden_R, b.one_N[thread])
        for start in range(thread * ROW_BLOCK, rows, threads * ROW_BLOCK):
            for r in range(start, min(start + ROW_BLOCK, rows)):
                hidden_R[r] = max(hidden_R[r], np.float32(0))


@phase
def _by_matrix(s: Any, w: Any, b: Any, sync: Any, thread: int, threads: int, layer: int) -> None:
    """With the down matrix as llama.cpp stores it: all activations first, then the matrix product."""
    for k in range(b.choice_NK.shape[1]):
        plain_activations(s, w, b, thread, threads, layer, k)
    meet(sync, thread, threads)
    tensor = w.tensors[layer, DOWN]
    prepared = b.prepared_hidden_N[thread].ctypes.data
    for k in range(b.choice_NK.shape[1]):
        x, expert = b.h_KF[k].ctypes.data, b.choice_NK[thread, k]
        prepare_input(w.types, tensor[TYPE], x, b.h_KF.shape[1], prepared)
        matrix_rows(w.types, tensor, expert, x, prepared, thread, threads, True, b.x_D, b.one_N[thread])
