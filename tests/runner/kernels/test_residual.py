"""Norms and sums of the residual's rows, against NumPy."""

import math

import numpy as np
import pytest

from tsconvert.runner.kernels import residual

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("width", [1, 5, 64, 577])
def test_rms_norm_has_the_bits_of_llama_cpp(params_of, width):
    """Its C code's roundings in NumPy (ggml_compute_forward_rms_norm_f32); a sum in float is right in some rows."""
    params = params_of(width=width, eps=1e-5)
    for _ in range(30):
        x_D, weight_D = RNG.standard_normal((2, width)).astype(np.float32)
        out_D = np.empty(width, np.float32)
        residual.rms_norm(params, x_D.ctypes.data, weight_D.ctypes.data, out_D.ctypes.data)
        mean = np.float32(math.fsum((x_D * x_D).tolist()) / width)
        scale = np.float32(1) / np.sqrt(mean + np.float32(1e-5))
        assert (out_D == x_D * scale * weight_D).all()


@pytest.mark.parametrize("cap", [5.0, 30.0])
def test_a_soft_cap_keeps_small_numbers_digits(params_of, cap):
    x = np.concatenate([np.geomspace(1e-6, 200, 999), -np.geomspace(1e-6, 200, 1000)]).astype(np.float32)
    out = x.copy()
    residual.cap_floats(params_of(), out.ctypes.data, len(out), np.float32(0.5), np.float32(cap))
    np.testing.assert_allclose(out, cap * np.tanh(x.astype(np.float64) * 0.5 / cap), rtol=8e-7)
