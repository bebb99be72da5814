"""The residual's rows: embedded, normalised, and added to."""

import numpy as np

from .barrier import meet
from .compiling import compiled, compiled_sum
from .memory import call_row, load_f32, load_i64, store_f32
from .parameters import BlockType, Parameters, row_at
from .simd.float_vectors import cap_vector
from .work_shares import run_start, token_start


@compiled
def clear(params: Parameters, into: int, count: int) -> None:  # noqa: ARG001
    """``count`` zeros."""
    for i in range(count):
        store_f32(into, i, 0.0)


@compiled
def copy_floats(params: Parameters, source: int, into: int, count: int) -> None:  # noqa: ARG001
    """into[i] = source[i]."""
    for i in range(count):
        store_f32(into, i, load_f32(source, i))


@compiled
def add_floats(params: Parameters, source: int, into: int, count: int) -> None:  # noqa: ARG001
    """into[i] += source[i]."""
    for i in range(count):
        store_f32(into, i, load_f32(into, i) + load_f32(source, i))


@compiled
def scale_floats(params: Parameters, at: int, count: int, scale: float) -> None:  # noqa: ARG001
    """``count`` floats times a scale, in place."""
    for i in range(count):
        store_f32(at, i, load_f32(at, i) * scale)


@compiled
def cap_floats(params: Parameters, at: int, count: int, scale: float, cap: float) -> None:  # noqa: ARG001
    """``count`` floats x become cap tanh(scale x / cap), in place."""
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        cap_vector(at + 4 * i, scale, cap)
    for i in range(whole, count):
        store_f32(at, i, cap * np.tanh(load_f32(at, i) * scale / cap))


@compiled
def add_bias(params: Parameters, thread: int, bias: int, out: int, rows: int) -> None:
    """Add a bias, if there is one, to the rows that the thread takes care of, each token's ``rows`` after the other."""
    first, end = run_start(params, rows, thread), run_start(params, rows, thread + 1)
    for t in range(params.tokens if bias else 0):
        add_floats(params, bias + 4 * first, out + 4 * (t * rows + first), end - first)


@compiled_sum
def norm_scale(params: Parameters, x: int, count: int) -> np.float32:
    """1 / sqrt(mean(x^2) + eps) of ``count`` floats.

    Rounded where llama.cpp's ggml_compute_forward_rms_norm_f32 rounds, whose sum is in double precision too: weights of
    few bits have inputs half way between two numbers, and the last bit decides which way they are rounded.
    """
    total = 0.0
    for i in range(count):
        total += np.float64(load_f32(x, i) * load_f32(x, i))
    return np.float32(1) / np.sqrt(np.float32(total / count) + np.float32(params.eps))


@compiled
def rms_norm(params: Parameters, x: int, weight: int, out: int) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight; all addresses of floats."""
    scale = norm_scale(params, x, params.width)
    for i in range(params.width):
        store_f32(out, i, load_f32(x, i) * scale * load_f32(weight, i))


@compiled
def normalise(params: Parameters, thread: int, weight: int) -> None:
    """normed = rms_norm(x), or x where there is no norm."""
    first, end = token_start(params, thread), token_start(params, thread + 1)
    for r in range(first, end):
        if weight:
            rms_norm(params, row_at(params.x, r), weight, row_at(params.normed, r))
        else:
            copy_floats(params, row_at(params.x, r), row_at(params.normed, r), params.width)
    if params.tokens > 1:
        meet(params, thread)


@compiled
def add_row(params: Parameters, source: int, row: int, weight: int) -> None:
    """x += source, after a norm with ``weight`` if there is one, times the model's scale; uses up the row of `normed`.

    Args:
        row: of the residual.
    """
    if weight or params.residual_scale != 1:
        target = row_at(params.normed, row)
        if weight:
            rms_norm(params, source, weight, target)
        else:
            copy_floats(params, source, target, params.width)
        scale_floats(params, target, params.width, params.residual_scale)
        source = target
    add_floats(params, source, row_at(params.x, row), params.width)


@compiled
def add_to_residual(params: Parameters, thread: int, weight: int) -> None:
    """x += added, which all threads have written, after a norm with ``weight`` if there is one."""
    first, end = token_start(params, thread), token_start(params, thread + 1)
    for r in range(first, end):
        add_row(params, row_at(params.added, 0 if params.tokens == 1 else r), r, weight)


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
        if params.embedding_scale != 1:
            scale_floats(params, row_at(params.x, r), params.width, params.embedding_scale)
