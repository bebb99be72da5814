"""The residual's rows: embedded, normalised, and added to."""

import numpy as np

from .barrier import meet
from .compiling import compiled, compiled_sum
from .memory import call_row, load_f32, load_i64, store_f32
from .parameters import BlockType, Parameters, row_at
from .work_shares import token_start


@compiled
def clear(params: Parameters, into: int, count: int) -> None:  # noqa: ARG001
    """``count`` zeros."""
    for i in range(count):
        store_f32(into, i, 0.0)


@compiled
def add_floats(params: Parameters, source: int, into: int, count: int) -> None:  # noqa: ARG001
    """into[i] += source[i]."""
    for i in range(count):
        store_f32(into, i, load_f32(into, i) + load_f32(source, i))


@compiled_sum
def mean_square(params: Parameters, x: int) -> np.float32:
    """The mean of the squares of a row of floats."""
    total = np.float32(0)
    for i in range(params.width):
        total += load_f32(x, i) * load_f32(x, i)
    return total / np.float32(params.width)


@compiled
def rms_norm(params: Parameters, x: int, weight: int, out: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight; all addresses of floats."""
    scale = np.float32(1.0 / np.sqrt(mean_square(params, x) + params.eps))
    for i in range(params.width):
        store_f32(out, i, load_f32(x, i) * scale * load_f32(weight, i))


@compiled
def normalise(params: Parameters, thread: int, weight: int) -> None:
    """normed = rms_norm(x)."""
    first, end = token_start(params, thread), token_start(params, thread + 1)
    for r in range(first, end):
        rms_norm(params, row_at(params.x, r), weight, row_at(params.normed, r))
    if params.tokens > 1:
        meet(params, thread)


@compiled
def add_to_residual(params: Parameters, thread: int) -> None:
    """x += added, which all threads have written."""
    first, end = token_start(params, thread), token_start(params, thread + 1)
    for r in range(first, end):
        source = row_at(params.added, 0 if params.tokens == 1 else r)
        add_floats(params, source, row_at(params.x, r), params.width)


@compiled
def read_row(params: Parameters, kind: BlockType, row: int, into: int) -> None:
    """into[i] = row[i]; ggml has decoders for all types but F32."""
    if kind.to_float:
        call_row(kind.to_float, row, into, params.width)
    else:
        for i in range(params.width):
            store_f32(into, i, load_f32(row, i))


@compiled
def embed(params: Parameters, thread: int) -> None:
    """x = rows of the embedding."""
    tensor = params.token_embd
    first, end = token_start(params, thread), token_start(params, thread + 1)
    for r in range(first, end):
        token = load_i64(params.token_ids, 0 if params.tokens == 1 else r)
        read_row(params, tensor.type, tensor.address + token * tensor.row_bytes, row_at(params.x, r))
