"""Gates and ups become activations, in place: silu(gate) * up, gelu(gate) * up, relu(gate) * relu(up), relu(gate) * up."""

from typing import Any

import numpy as np

from ..compiling import compiled, inlined
from ..memory import load_f32, load_i32, store_f32
from ..parameters import BLOCK, DRELU, GEGLU, SWIGLU, Layer, Parameters
from ..simd.float_vectors import gelu_times, swish_times

_SQRT_2_OVER_PI = 0.7978845608028654


@inlined
def activation_of(activation: int, gate: float, up: float) -> Any:
    """The activation of one neuron, as parameters.py numbers them."""
    zero, one = np.float32(0), np.float32(1)
    if activation == SWIGLU:
        return gate / (one + np.exp(-gate)) * up
    if activation == GEGLU:
        power = np.float32(-2 * _SQRT_2_OVER_PI) * gate * (one + np.float32(0.044715) * gate * gate)
        return gate / (one + np.exp(power)) * up
    if gate <= zero or (activation == DRELU and up <= zero):
        return zero
    return gate * up


@inlined
def smooth(activation: int) -> bool:
    """Whether no neuron is ever silent."""
    return activation in (SWIGLU, GEGLU)


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


@compiled
def shift_gates(params: Parameters, layer: Layer, gate: int, listed: int, first: int, count: int) -> None:  # noqa: ARG001
    """Close the gates that the layer's shift closes: of ``count`` numbers from ``first`` on, or of those listed."""
    least = layer.shift
    for i in range(count if least > 0 else 0):
        j = load_i32(listed, i) if listed else first + i
        if load_f32(gate, j) <= least:
            store_f32(gate, j, np.float32(0))


@compiled
def shift_ups(params: Parameters, layer: Layer, up: int, listed: int, first: int, count: int) -> None:
    """The same of ups, which only dReLU cuts off."""
    if params.activation == DRELU:
        shift_gates(params, layer, up, listed, first, count)


@compiled
def activate(params: Parameters, listed: int, first: int, count: int, gate: int, up: int, share: float) -> int:
    """Turn gates into activations times ``share``; returns how many are not zero.

    Of ``count`` neurons from ``first`` on, or of the int32 list at ``listed``.
    """
    fired, activation = 0, params.activation
    for i in range(count):
        j = load_i32(listed, i) if listed else first + i
        h = activation_of(activation, load_f32(gate, j), load_f32(up, j))
        fired += h != 0
        store_f32(gate, j, h * share)
    return fired


@compiled
def activate_run(params: Parameters, gate: int, up: int, count: int, share: float) -> int:
    """Turn ``count`` neighbouring gates into activations times ``share``; returns how many are not zero.

    All are under SwiGLU and GeGLU, whose exponentials are computed by sixteen.
    """
    if not smooth(params.activation):
        return activate(params, 0, 0, count, gate, up, share)
    whole = count // 16 * 16
    for i in range(0, whole, 16):
        if params.activation == SWIGLU:
            swish_times(gate + 4 * i, up + 4 * i)
        else:
            gelu_times(gate + 4 * i, up + 4 * i)
    activate(params, 0, whole, count - whole, gate, up, np.float32(1))
    if share != 1:
        for i in range(count):
            store_f32(gate, i, load_f32(gate, i) * share)
    return count
