"""The down product of a block of tokens: which rows fire for a token, and their sum, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels.ffn import block_ffn
from tsconvert.runner.kernels.parameters import BLOCK, PANEL_COLUMNS, PANEL_ROWS

RNG = np.random.default_rng(11)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_which_of_the_chosen_tokens_a_neuron_may_fire_for(params_of):
    values_T, some = np.array([1, 9, -1, 0], np.float32), np.array([[2, 0, 3]], np.int32)
    listed = np.zeros((1, 4), np.int32)
    params = params_of(chosen_tokens=some, firing_tokens=listed)
    assert block_ffn.chosen_above(params, 0, 3, values_T.ctypes.data, 0.0) == 2
    assert listed[0, :2].tolist() == [0, 3]
    assert block_ffn.chosen_open(params, 0, 3, values_T.ctypes.data) == 1
    assert listed[0, 0] == 0


@pytest.mark.parametrize("width", [PANEL_COLUMNS, 96, 50])
def test_each_token_adds_the_rows_that_fire_for_it(params_of, width):
    h_FT = np.zeros((PANEL_ROWS + 20, BLOCK), np.float32)
    h_FT[20:60] = floats(40, BLOCK) * (RNG.random((40, BLOCK)) < 0.2)
    h_FT[27] = 0
    panel_RC, out_TC, some = floats(PANEL_ROWS, PANEL_COLUMNS), floats(6, width), np.array([[0, 5, 9, 127]], np.int32)
    lists, shares = np.zeros((1, 4 * PANEL_ROWS), np.int32), np.zeros((1, 4 * PANEL_ROWS), np.float32)
    lengths = np.zeros((1, 4), np.int32)
    params = params_of(
        gate=h_FT, chosen_tokens=some, firing=lists, firing_shares=shares, firing_counts=lengths, width=width
    )
    used, fires_RT = block_ffn.list_firing(params, 0, 4, 20, 40), h_FT[20:60, some[0]] != 0
    assert [bool(used >> r & 1) for r in range(40)] == fires_RT.any(axis=1).tolist()
    for i, t in enumerate(some[0]):
        ours_C, place = out_TC[i].copy(), 4 * PANEL_ROWS * i
        block_ffn.add_panel(
            params, panel_RC.ctypes.data, lists.ctypes.data + place, shares.ctypes.data + place, int(lengths[0, i]),
            ours_C.ctypes.data, width,
        )  # fmt: skip
        twin_C = out_TC[i] + h_FT[20:60, t] @ panel_RC[:40, :width]
        np.testing.assert_allclose(ours_C, twin_C, rtol=1e-5, atol=1e-5)
