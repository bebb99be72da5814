"""Gates and ups become activations, in place: silu(gate) * up, gelu(gate) * up, relu(gate) * relu(up), relu(gate) * up.

TSWIGLU and TGEGLU, the first two with thresholds, look at up first: there `gate` is the up matrix here and in all that
follows, and `up` the gate matrix (engine.py changes them), so that the first of the two decides for which neurons the
second is read, whatever the activation.
"""

from typing import Any

import numpy as np

from ..compiling import compiled, inlined
from ..memory import load_f32, load_i32, store_f32
from ..parameters import BLOCK, DRELU, GEGLU, SWIGLU, TGEGLU, TSWIGLU, Layer, Parameters
from ..simd.float_vectors import gelu_times, swish_times

_SQRT_2_OVER_PI = 0.7978845608028654


@inlined
def gelu_of(x: float) -> Any:
    """gelu by tanh."""
    one = np.float32(1)
    power = np.float32(-2 * _SQRT_2_OVER_PI) * x * (one + np.float32(0.044715) * x * x)
    return x / (one + np.exp(power))


@inlined
def has_thresholds(activation: int) -> bool:
    """Whether an activation's size, and up's, decides if a neuron fires."""
    return activation in (TSWIGLU, TGEGLU)


@inlined
def activation_of(activation: int, gate: float, up: float, least: float) -> Any:
    """The activation of one neuron, as parameters.py numbers them; with thresholds zero up to the size ``least``."""
    zero, one = np.float32(0), np.float32(1)
    if activation == SWIGLU:
        return gate / (one + np.exp(-gate)) * up
    if activation == GEGLU:
        return gelu_of(gate) * up
    if has_thresholds(activation):
        h = (up / (one + np.exp(-up)) if activation == TSWIGLU else gelu_of(up)) * gate
        return h if abs(h) > least else zero
    if gate <= zero or (activation == DRELU and up <= zero):
        return zero
    return gate * up


@inlined
def smooth(activation: int) -> bool:
    """Whether no neuron is ever silent."""
    return activation in (SWIGLU, GEGLU)


@inlined
def is_open(activation: int, gate: float) -> Any:
    """Whether a neuron whose first matrix gave ``gate``, after `shift_gates`, may fire."""
    return gate > 0 or (has_thresholds(activation) and gate != 0)


@compiled
def add_neuron_bias(params: Parameters, bias: int, values: int, listed: int, first: int, count: int) -> None:  # noqa: ARG001
    """Add a bias, if there is one, to one token's ``count`` neurons from ``first`` on, or to those listed."""
    for i in range(count if bias else 0):
        j = load_i32(listed, i) if listed else first + i
        store_f32(values, j, load_f32(values, j) + load_f32(bias, j))


@compiled
def add_token_bias(params: Parameters, bias: int, values: int, tokens: int, some: int, first: int, end: int) -> None:  # noqa: ARG001
    """Add a bias, if there is one, to the neurons ``first`` to ``end`` of the ``some`` listed tokens of a block."""
    for j in range(first, end if bias else first):
        for i in range(some):
            place = BLOCK * j + load_i32(tokens, i)
            store_f32(values, place, load_f32(values, place) + load_f32(bias, j))


@inlined
def shift_of(params: Parameters, layer: Layer, expert: int, neuron: int) -> Any:
    """The number up to which a neuron's gate is shut."""
    return load_f32(layer.shifts, expert * params.neurons + neuron) if layer.shifts else layer.shift


@inlined
def is_shut(activation: int, gate: float, shift: float) -> Any:
    """Whether a gate is at most ``shift``; with thresholds, its size."""
    return gate <= shift and (not has_thresholds(activation) or -gate <= shift)


@compiled
def shift_gates(params: Parameters, layer: Layer, expert: int, gate: int, listed: int, first: int, count: int) -> None:
    """Close the gates of one token that the layer's shift closes: of ``count`` neurons from ``first`` on, or listed."""
    for i in range(count if layer.shift > 0 else 0):
        j = load_i32(listed, i) if listed else first + i
        if is_shut(params.activation, load_f32(gate, j), shift_of(params, layer, expert, j)):
            store_f32(gate, j, np.float32(0))


@compiled
def shift_token_gates(params: Parameters, layer: Layer, expert: int, gate: int, first: int, end: int) -> None:
    """The same of all tokens of a block, of the neurons ``first`` to ``end``."""
    for j in range(first, end if layer.shift > 0 else first):
        shift = shift_of(params, layer, expert, j)
        for i in range(BLOCK * j, BLOCK * (j + 1)):
            if is_shut(params.activation, load_f32(gate, i), shift):
                store_f32(gate, i, np.float32(0))


@compiled
def shift_ups(params: Parameters, layer: Layer, up: int, listed: int, first: int, count: int) -> None:
    """Zero the ups that dReLU cuts off, of ``count`` numbers from ``first`` on, or of those listed."""
    if params.activation == DRELU:
        shift_gates(params, layer, 0, up, listed, first, count)


@compiled
def activate(
    params: Parameters, layer: Layer, listed: int, first: int, count: int, gate: int, up: int, share: float
) -> int:
    """Turn gates into activations times ``share``; returns how many are not zero.

    Of ``count`` neurons from ``first`` on, or of the int32 list at ``listed``.
    """
    fired, activation, least = 0, params.activation, layer.least
    for i in range(count):
        j = load_i32(listed, i) if listed else first + i
        h = activation_of(activation, load_f32(gate, j), load_f32(up, j), least)
        fired += h != 0
        store_f32(gate, j, h * share)
    return fired


@compiled
def activate_run(params: Parameters, layer: Layer, gate: int, up: int, count: int, share: float) -> int:
    """Turn ``count`` neighbouring gates into activations times ``share``; returns how many are not zero.

    All are under SwiGLU and GeGLU, whose exponentials are computed by sixteen.
    """
    if not smooth(params.activation):
        return activate(params, layer, 0, 0, count, gate, up, share)
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        if params.activation == SWIGLU:
            swish_times(gate + 4 * i, up + 4 * i)
        else:
            gelu_times(gate + 4 * i, up + 4 * i)
    activate(params, layer, 0, whole, count - whole, gate, up, np.float32(1))
    if share != 1:
        for i in range(count):
            store_f32(gate, i, load_f32(gate, i) * share)
    return count
