"""Which of a block's tokens a neuron is looked at for."""

import numpy as np

from tsconvert.runner.kernels.ffn import block_ffn


def test_which_of_the_chosen_tokens_a_neuron_may_fire_for(params_of):
    values_T, some = np.array([1, 9, -1, 0], np.float32), np.array([[2, 0, 3]], np.int32)
    listed = np.zeros((1, 4), np.int32)
    params = params_of(chosen_tokens=some, firing_tokens=listed)
    assert block_ffn.chosen_above(params, 0, 3, values_T.ctypes.data, 0.0) == 2
    assert listed[0, :2].tolist() == [0, 3]
    assert block_ffn.chosen_open(params, 0, 3, values_T.ctypes.data) == 1
    assert listed[0, 0] == 0
