"""Activations, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels.ffn import activations
from tsconvert.runner.kernels.parameters import BLOCK, DRELU, REGLU, SWIGLU, TSWIGLU

RNG = np.random.default_rng(11)
TWINS = [
    (SWIGLU, lambda g, u: g / (1 + np.exp(-g)) * u),
    (DRELU, lambda g, u: np.maximum(g, 0) * np.maximum(u, 0)),
    (REGLU, lambda g, u: np.maximum(g, 0) * u),
    (TSWIGLU, lambda g, u: u / (1 + np.exp(-u)) * g),  # the kernels' first matrix is up there
]


@pytest.mark.parametrize(("activation", "twin"), TWINS)
def test_activations(params_of, layer_of, activation, twin):
    gate_F, up_F = RNG.standard_normal((2, 40)).astype(np.float32)
    listed, expected, ours = np.arange(0, 40, 2, dtype=np.int32), gate_F.copy(), gate_F.copy()
    expected[:30:2] = twin(gate_F, up_F)[:30:2] * 0.5
    params = params_of(activation=activation)
    fired = activations.activate(params, layer_of(), listed.ctypes.data, 0, 15, ours.ctypes.data, up_F.ctypes.data, 0.5)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert fired == np.count_nonzero(expected[:30:2])


@pytest.mark.parametrize("count", [1, 16, 45])
@pytest.mark.parametrize(("activation", "twin"), TWINS)
def test_activations_of_a_run(params_of, layer_of, activation, twin, count):
    gate_F, up_F = RNG.standard_normal((2, 50)).astype(np.float32)
    gate_F *= 20
    expected = gate_F.astype(np.float64)
    expected[:count] = twin(expected[:count], up_F[:count]) * 0.5
    params = params_of(activation=activation)
    activations.activate_run(params, layer_of(), gate_F.ctypes.data, up_F.ctypes.data, count, 0.5)
    np.testing.assert_allclose(gate_F, expected, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("activation", [DRELU, REGLU])
def test_what_is_not_above_the_shift_is_zero(params_of, layer_of, activation):
    values, listed = np.array([0.1, 0.2, 0.3, -1, 0.5], np.float32), np.array([1, 2], np.int32)
    gate, up, params, layer = values.copy(), values.copy(), params_of(activation=activation), layer_of(shift=0.25)
    activations.shift_gates(params, layer, 0, gate.ctypes.data, listed.ctypes.data, 0, 2)
    assert gate.tolist() == [values[0], 0, values[2], -1, 0.5]
    activations.shift_ups(params, layer, up.ctypes.data, 0, 1, 3)
    assert up.tolist() == ([values[0], 0, values[2], 0, 0.5] if activation == DRELU else values.tolist())


def test_swiglu_with_thresholds_leaves_out_what_is_small(params_of, layer_of):
    first, second = np.array([0.5, -0.5, 0.5, -0.5, 2.0], np.float32), np.array([3, -3, -0.1, 0.1, 0.2], np.float32)
    wanted = second / (1 + np.exp(-second)) * first
    params, layer = params_of(activation=TSWIGLU), layer_of(shift=0.4, least=0.05)
    assert activations.activate(params, layer, 0, 0, 5, first.ctypes.data, second.ctypes.data, 1.0) == 3
    np.testing.assert_allclose(first, np.where(np.abs(wanted) > 0.05, wanted, 0), rtol=1e-6)


def test_an_up_is_shut_by_its_size(params_of, layer_of):
    values = np.array([0.1, -0.1, 0.3, -0.3, 0.2], np.float32)
    params, layer = params_of(activation=TSWIGLU), layer_of(shift=0.2)
    activations.shift_gates(params, layer, 0, values.ctypes.data, 0, 0, 5)
    np.testing.assert_array_equal(values, np.array([0, 0, 0.3, -0.3, 0], np.float32))


def test_ups_are_shut_each_by_its_own_shift(params_of, layer_of):
    shift_EF = np.array([[9, 9, 9, 9], [0.1, 0.4, np.inf, 0.2]], np.float32)
    params, layer = params_of(activation=TSWIGLU, neurons=4), layer_of(shift=0.3, shifts=shift_EF.ctypes.data)
    one_F = np.array([0.3, -0.3, 5, -0.3], np.float32)
    block_FT = np.repeat(one_F[:, None], BLOCK, axis=1)
    activations.shift_gates(params, layer, 1, one_F.ctypes.data, 0, 0, 4)
    np.testing.assert_array_equal(one_F, np.array([0.3, 0, 0, -0.3], np.float32))
    activations.shift_token_gates(params, layer, 1, block_FT.ctypes.data, 1, 4)
    np.testing.assert_array_equal(block_FT[:, 3], np.array([0.3, 0, 0, -0.3], np.float32))
