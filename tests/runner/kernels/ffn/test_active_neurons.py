"""Lists of neurons that may fire, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels.ffn import active_neurons
from tsconvert.runner.kernels.parameters import DRELU

VALUES_F = np.array([0.25, -1, 0, 3, 0.1, -0.0, np.nan, 2], np.float32)


def test_lists_of_those_above_a_threshold(params_of):
    listed, params, values = np.zeros(8, np.int32), params_of(), VALUES_F.ctypes.data
    count = active_neurons.list_predicted(params, values, 1, 8, 0.25, listed.ctypes.data)
    assert listed[:count].tolist() == [3, 7]
    count = active_neurons.list_open(params, values, 1, 8, listed.ctypes.data)
    assert listed[:count].tolist() == [3, 4, 7]


@pytest.mark.parametrize(("keep", "expected"), [("keep_open", [0, 3, 4]), ("keep_firing", [0, 3, 4, 6])])
def test_passes_drop_neurons_from_the_list(params_of, keep, expected):
    listed = np.array([0, 2, 3, 4, 5, 6, 1, 7], np.int32)
    kept = getattr(active_neurons, keep)(params_of(), listed.ctypes.data, 6, VALUES_F.ctypes.data)
    assert listed[:kept].tolist() == expected


def test_neurons_that_fire_below_the_threshold_are_counted(params_of, layer_of):
    gate, up, logits = np.array([[1, 1, -1, 1, 1], [1, -1, 1, 1, 1], [-9, -9, -9, 9, 0]], np.float32)
    addresses = gate.ctypes.data, up.ctypes.data, logits.ctypes.data
    assert active_neurons.count_missed(params_of(activation=DRELU), layer_of(), 0, 5, *addresses, 0.0) == 1
    assert active_neurons.count_missed(params_of(activation=DRELU), layer_of(), 1, 5, *addresses, 0.0) == 0
    assert active_neurons.count_missed(params_of(activation=DRELU), layer_of(), 0, 5, *addresses, 0.5) == 2
