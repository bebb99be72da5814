"""Norms and sums of the residual's rows, against NumPy."""

import numpy as np
import pytest

from tsconvert.runner.kernels import residual

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("width", [1, 5, 64, 577])
def test_rms_norm(params_of, width):
    x_D, weight_D = RNG.standard_normal((2, width)).astype(np.float32)
    out_D = np.empty(width, np.float32)
    params = params_of(width=width, eps=1e-5)
    residual.rms_norm(params, x_D.ctypes.data, weight_D.ctypes.data, out_D.ctypes.data)
    twin = x_D / np.sqrt((x_D.astype(np.float64) ** 2).mean() + 1e-5) * weight_D
    np.testing.assert_allclose(out_D, twin, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_a_soft_cap_keeps_small_numbers_digits(params_of, cap):
    x = np.concatenate([np.geomspace(1e-6, 200, 999), -np.geomspace(1e-6, 200, 1000)]).astype(np.float32)
    out = x.copy()
    residual.cap_floats(params_of(), out.ctypes.data, len(out), np.float32(0.5), np.float32(cap))
    np.testing.assert_allclose(out, cap * np.tanh(x.astype(np.float64) * 0.5 / cap), rtol=8e-7)
