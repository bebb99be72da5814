"""Activations, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels.ffn import activations
from tsconvert.runner.kernels.parameters import DRELU, REGLU, SWIGLU

RNG = np.random.default_rng(11)
TWINS = [
    (SWIGLU, lambda g, u: g / (1 + np.exp(-g)) * u),
    (DRELU, lambda g, u: np.maximum(g, 0) * np.maximum(u, 0)),
    (REGLU, lambda g, u: np.maximum(g, 0) * u),
]


@pytest.mark.parametrize(("activation", "twin"), TWINS)
def test_activations(params_of, activation, twin):
    gate_F, up_F = RNG.standard_normal((2, 40)).astype(np.float32)
    listed, expected, ours = np.arange(0, 40, 2, dtype=np.int32), gate_F.copy(), gate_F.copy()
    expected[:30:2] = twin(gate_F, up_F)[:30:2] * 0.5
    params = params_of(activation=activation)
    fired = activations.activate(params, listed.ctypes.data, 0, 15, ours.ctypes.data, up_F.ctypes.data, 0.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert fired == np.count_nonzero(expected[:30:2])


@pytest.mark.parametrize("count", [1, 16, 45])
@pytest.mark.parametrize(("activation", "twin"), TWINS)
def test_activations_of_a_run(params_of, activation, twin, count):
    gate_F, up_F = RNG.standard_normal((2, 50)).astype(np.float32)
    gate_F *= 20
    expected = gate_F.astype(np.float64)
    expected[:count] = twin(expected[:count], up_F[:count]) * 0.5
    params = params_of(activation=activation)
    activations.activate_run(params, gate_F.ctypes.data, up_F.ctypes.data, count, 0.5)
    np.testing.assert_allclose(gate_F, expected, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("activation", [DRELU, REGLU])
def test_what_is_not_above_the_shift_is_zero(params_of, layer_of, activation):
    values, listed = np.array([0.1, 0.2, 0.3, -1, 0.5], np.float32), np.array([1, 2], np.int32)
    gate, up, params, layer = values.copy(), values.copy(), params_of(activation=activation), layer_of(shift=0.25)
    activations.shift_gates(params, layer, gate.ctypes.data, listed.ctypes.data, 0, 2)
    assert gate.tolist() == [values[0], 0, values[2], -1, 0.5]
    activations.shift_ups(params, layer, up.ctypes.data, 0, 1, 3)
    assert up.tolist() == ([values[0], 0, values[2], 0, 0.5] if activation == DRELU else values.tolist())
