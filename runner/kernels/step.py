"""The compiled step: a block of tokens through the whole model, run by every thread over its share of rows.

No allocation, no Python object and no interpreter lock inside. All threads call it with the same arguments but their
number, and meet at barriers.
"""

import ctypes
from typing import Any

from .access import at, number, real, tensor_of, type_field
from .attention import attention
from .barrier import aborted
from .compiling import compiled, whole
from .elementwise import rms_norm
from .ffn import ffn
from .native import call_row, load_f32, load_i64, store_f32, store_i32
from .parts import gather_all, multiply, ready, rows_of, run_of
from .products import source_stamp
from .rows import TO_FLOAT
from .tables import (
    ADDRESS,
    EPS,
    LAYERS,
    NORMED,
    NORMS,
    OUTPUT,
    PREPARED,
    ROW_BYTES,
    ROWS,
    SYNC,
    TOKEN_EMBD,
    TOKENS,
    TYPE,
    TYPES,
    WIDTH,
    X,
)

ARGUMENTS = 10
_keep: list[Any] = []  # compiled code lives as long as the object that Numba made


@compiled
def read_row(types: int, type_id: int, row: int, columns: int, into: int) -> None:
    """into[i] = row[i]; ggml has decoders for all types but F32."""
    function = type_field(types, type_id, TO_FLOAT)
    if function:
        call_row(function, row, into, columns)
    else:
        for i in range(columns):
            store_f32(into, i, load_f32(row, i))


@compiled
def _embed(m: int, thread: int, threads: int, token_ids: int, tokens: int) -> None:
    tensor = tensor_of(m, number(m, LAYERS), TOKEN_EMBD)
    first, end = rows_of(thread, threads, tokens)
    for r in range(first, end):
        row = load_i64(tensor, ADDRESS) + load_i64(token_ids, 0 if tokens == 1 else r) * load_i64(tensor, ROW_BYTES)
        read_row(at(m, TYPES, 0), load_i64(tensor, TYPE), row, number(m, WIDTH), at(m, X, r))


@compiled
def _head(m: int, thread: int, threads: int, tokens: int, logits: int, outputs: int) -> None:
    """Logits of the last ``outputs`` tokens."""
    layers = number(m, LAYERS)
    tensor = tensor_of(m, layers, OUTPUT)
    first, end = rows_of(thread, threads, tokens)
    for r in range(first, end):
        rms_norm(at(m, X, r), at(m, NORMS, 2 * layers), number(m, WIDTH), real(m, EPS), at(m, NORMED, r))
    if tokens > 1:
        gather_all(m, thread, threads)
    row, chosen, skipped = thread if tokens == 1 else 0, at(m, TOKENS, thread), tokens - outputs
    x, rows = at(m, NORMED, row), load_i64(tensor, ROWS)
    ready(m, thread, threads, tokens, tensor, x, PREPARED, 0)
    for i in range(outputs):
        store_i32(chosen, i, skipped + i)
    first, end = run_of(rows, thread, threads)
    out = logits - 4 * skipped * rows
    multiply(m, thread, tensor, 0, 0, first, end - first, x, PREPARED, row, chosen, outputs, out, 1, rows)


def _build(cache: bool) -> Any:
    stamp = source_stamp()

    @whole(ARGUMENTS, cache=cache)
    def step(
        m: int, thread: int, threads: int, token_ids: int, tokens: int, position: int, mode: int, audit: int,
        logits: int, outputs: int,
    ) -> int:  # fmt: skip
        _embed(m, thread, threads, token_ids, tokens)
        for layer in range(number(m, LAYERS)):
            attention(m, thread, threads, layer, position, tokens)
            ffn(m, thread, threads, layer, tokens, mode, audit)
            if aborted(at(m, SYNC, 0)):
                return stamp
        if outputs:
            _head(m, thread, threads, tokens, logits, outputs)
        gather_all(m, thread, threads)
        return 0

    call = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * ARGUMENTS)(step.address)
    _keep.append(step)
    return call


def build_step() -> Any:
    """The step, from Numba's cache on disk where there is one, callable from any thread without the interpreter lock.

    Its arguments, all whole numbers: the table's address (tables.py), this thread's number and how many there are, the
    address of int64 tokens, their number (1 to tables.BLOCK), the position of the first, mode, audit, the address of
    float32 logits [O, V] for the last O tokens, and O. It returns 0, or another number when a thread aborted.
    """
    try:
        return _build(cache=True)
    except RuntimeError:  # Numba found no folder that it may write to
        return _build(cache=False)
