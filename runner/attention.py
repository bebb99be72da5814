"""The attention half of a layer, as each thread runs it."""

from typing import Any

from .barrier import meet
from .kernels import TYPE, attend, matrix_rows, rms_norm, rotate_rows, store_rows
from .rows import phase, prepare_input
from .tables import K, O, Q, V


@phase
def attention(s: Any, w: Any, b: Any, sync: Any, thread: int, threads: int, layer: int, position: int) -> None:
    """x += attention(norm(x)), with the new position's key and value put into the cache."""
    normed_D = b.normed_ND[thread]
    rms_norm(b.x_D, w.norms[2 * layer], s.eps, normed_D)
    _project(w, b, thread, threads, w.tensors[layer, Q], b.query)
    _project(w, b, thread, threads, w.tensors[layer, K], b.key)
    _project(w, b, thread, threads, w.tensors[layer, V], b.value)
    rotate_rows(b.query, s.head_dim, w.cos[position], w.sin[position], thread, threads)
    rotate_rows(b.key, s.head_dim, w.cos[position], w.sin[position], thread, threads)
    store_rows(b.key, s.head_dim, b.keys[layer], position, thread, threads)
    store_rows(b.value, s.head_dim, b.values[layer], position, thread, threads)
    meet(sync, thread, threads)

    first, group = max(0, position - s.window + 1), s.heads // s.kv_heads
    for head in range(thread, s.heads, threads):
        keys_PH, values_PH = b.keys[layer, head // group], b.values[layer, head // group]
        at, end = head * s.head_dim, (head + 1) * s.head_dim
        attend(b.query[at:end], keys_PH, values_PH, first, position, b.scores_NP[thread], b.attended[at:end])
    meet(sync, thread, threads)

    tensor = w.tensors[layer, O]
    x, prepared = b.attended.ctypes.data, b.prepared_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, b.attended.shape[0], prepared)
    matrix_rows(w.types, tensor, 0, x, prepared, thread, threads, True, b.x_D, b.one_N[thread])
    meet(sync, thread, threads)


@phase
def _project(w: Any, b: Any, thread: int, threads: int, tensor: Any, out: Any) -> None:
    x, prepared = b.normed_ND[thread].ctypes.data, b.prepared_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, b.normed_ND.shape[1], prepared)
    matrix_rows(w.types, tensor, 0, x, prepared, thread, threads, False, out, b.one_N[thread])
