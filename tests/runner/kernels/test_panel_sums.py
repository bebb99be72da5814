"""Weighted sums of rows for a block of tokens: which rows a token needs, and their sum, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels import panel_sums
from tsconvert.runner.kernels.parameters import BLOCK, PANEL_COLUMNS, PANEL_ROWS

RNG = np.random.default_rng(11)


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", [PANEL_COLUMNS, 96, 50])
def test_each_token_adds_the_rows_that_fire_for_it(params_of, width):
    h_FT = np.zeros((PANEL_ROWS + 20, BLOCK), np.float32)
    h_FT[20:60] = floats(40, BLOCK) * (RNG.random((40, BLOCK)) < 0.2)
    h_FT[27] = 0
    panel_RC, out_TC, some = floats(PANEL_ROWS, PANEL_COLUMNS), floats(6, width), np.array([[0, 5, 9, 127]], np.int32)
    lists, shares = np.zeros((1, 4 * PANEL_ROWS), np.int32), np.zeros((1, 4 * PANEL_ROWS), np.float32)
    lengths = np.zeros((1, 4), np.int32)
    params = params_of(chosen_tokens=some, firing=lists, firing_shares=shares, firing_counts=lengths, width=width)
    by_tokens_TF = np.ascontiguousarray(h_FT.T)
    for h, row_step, token_step in ((h_FT[20:], BLOCK, 1), (by_tokens_TF[:, 20:], 1, len(h_FT))):
        used = panel_sums.list_firing(params, 0, 4, 40, h.ctypes.data, row_step, token_step)
        fires_RT = h_FT[20:60, some[0]] != 0
        assert [bool(used >> r & 1) for r in range(40)] == fires_RT.any(axis=1).tolist()
        for i, t in enumerate(some[0]):
            ours_C, place = out_TC[i].copy(), 4 * PANEL_ROWS * i
            panel_sums.add_panel(
                params, panel_RC.ctypes.data, lists.ctypes.data + place, shares.ctypes.data + place, int(lengths[0, i]),
                ours_C.ctypes.data, width,
            )  # fmt: skip
            twin_C = out_TC[i] + h_FT[20:60, t] @ panel_RC[:40, :width]
            np.testing.assert_allclose(ours_C, twin_C, rtol=1e-5, atol=1e-5)
