"""The compiled step: tokens through the whole model, run by every thread over its share of rows.

No allocation, no Python object and no interpreter lock inside. All threads call `step` with the same arguments but
their number, and meet at barriers.
"""

import hashlib
from pathlib import Path
from typing import Any

from numba import njit

from .attention import attention
from .barrier import aborted, meet
from .ffn import ffn
from .kernels import ADDRESS, ROW_BYTES, TYPE, matrix_rows, rms_norm
from .rows import phase, prepare_input, read_row
from .tables import OUTPUT, TOKEN_EMBD


@phase
def _embed(w: Any, b: Any, token: int) -> None:
    tensor = w.tensors[-1, TOKEN_EMBD]
    read_row(w.types, tensor[TYPE], tensor[ADDRESS] + token * tensor[ROW_BYTES], b.x_D.shape[0], b.x_D)


@phase
def _head(s: Any, w: Any, b: Any, thread: int, threads: int, logits_V: Any) -> None:
    normed_D, tensor = b.normed_ND[thread], w.tensors[-1, OUTPUT]
    rms_norm(b.x_D, w.norms[2 * s.layers], s.eps, normed_D)
    x, prepared = normed_D.ctypes.data, b.prepared_N[thread].ctypes.data
    prepare_input(w.types, tensor[TYPE], x, s.width, prepared)
    matrix_rows(w.types, tensor, 0, x, prepared, thread, threads, False, logits_V, b.one_N[thread])


_COMPILED = ("attention", "barrier", "ffn", "kernels", "native", "neurons", "rows", "step", "tables")


def _sources() -> int:
    """A number that changes with any source that is compiled: Numba's cache looks at this file only."""
    digest = hashlib.sha256()
    for name in _COMPILED:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return int.from_bytes(digest.digest()[:7], "little")


def _build(cache: bool) -> Any:
    stamp = _sources()

    @njit(nogil=True, cache=cache)
    def step(
        s: Any, w: Any, b: Any, sync: Any, thread: int, threads: int,
        tokens_T: Any, position: int, mode: int, audit: int, logits_OV: Any,
    ) -> int:  # fmt: skip
        outputs = logits_OV.shape[0]
        skipped = tokens_T.shape[0] - outputs
        for t in range(tokens_T.shape[0]):
            if thread == 0:
                _embed(w, b, tokens_T[t])
            meet(sync, thread, threads)
            for layer in range(s.layers):
                attention(s, w, b, sync, thread, threads, layer, position + t)
                ffn(s, w, b, sync, thread, threads, layer, mode, audit)
                if aborted(sync):
                    return stamp
            if t >= skipped:
                _head(s, w, b, thread, threads, logits_OV[t - skipped])
            meet(sync, thread, threads)
        return 0

    return step


def build_step() -> Any:
    """The step, from Numba's cache on disk where there is one.

    Its arguments: shape, weights, buffers (tables.py), sync (barrier.py), this thread's number and how many there are,
    int64 tokens [T], the position of the first, mode, audit, and float32 logits [O, V] for the last O tokens. It
    returns 0, or another number when a thread aborted.
    """
    try:
        return _build(cache=True)
    except RuntimeError:  # Numba found no folder that it may write to
        return _build(cache=False)
