"""Rows of every type against ggml's own decoding and NumPy."""

import numpy as np
import pytest

from tsconvert.quant import ggml
from tsconvert.runner import rows

TYPES = rows.type_table()
FLOATS = ("F32", "F16", "BF16")
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def sample(type_name, columns, seed=0):
    rng = np.random.default_rng(seed)
    raw = ggml.quantize(rng.standard_normal((3, columns)).astype(np.float32), type_name)
    return raw, ggml.dequantize(raw, type_name, (3, columns)), rng.standard_normal(columns).astype(np.float32)


def dot(type_name, row, x):
    type_id, out = ggml.TYPES[type_name].id, np.zeros(1, np.float32)
    prepared = np.zeros(rows.input_bytes(len(x)), np.uint8)
    rows.prepare_input(TYPES, type_id, x.ctypes.data, len(x), prepared.ctypes.data)
    return rows.dot_row(TYPES, type_id, row.ctypes.data, x.ctypes.data, prepared.ctypes.data, len(x), out)


@pytest.mark.parametrize("columns", [1, 7, 64, 1001])
@pytest.mark.parametrize("type_name", FLOATS)
def test_float_rows_keep_float32_accuracy(type_name, columns):
    raw, values_RC, x_C = sample(type_name, columns)
    exact = values_RC[1].astype(np.float64) @ x_C.astype(np.float64)
    assert abs(dot(type_name, raw[1], x_C) - exact) < 1e-5 * np.abs(values_RC[1] * x_C).sum()


@pytest.mark.parametrize("type_name", BLOCKS)
def test_block_rows_meet_an_input_of_eight_bits(type_name):
    columns = 768 if ggml.TYPES[type_name].weights == 256 else 96
    raw, values_RC, x_C = sample(type_name, columns)
    exact = float(values_RC[1] @ x_C)
    # Q8 rounds each input by at most half of max/127: the sum of that many independent errors
    bound = np.abs(x_C).max() / 127 * np.linalg.norm(values_RC[1]) * 2
    assert abs(dot(type_name, raw[1], x_C) - exact) < bound


@pytest.mark.parametrize("type_name", FLOATS + BLOCKS)
def test_rows_are_added_and_read_as_they_decode(type_name):
    columns = 256 if type_name in BLOCKS else 77
    raw, values_RC, x_C = sample(type_name, columns)
    into_C, scratch_C = x_C.copy(), np.empty(columns, np.float32)
    rows.add_row(TYPES, ggml.TYPES[type_name].id, raw[2].ctypes.data, columns, np.float32(-1.5), into_C, scratch_C)
    np.testing.assert_allclose(into_C, x_C - 1.5 * values_RC[2], rtol=1e-6, atol=1e-6)
    rows.read_row(TYPES, ggml.TYPES[type_name].id, raw[2].ctypes.data, columns, into_C)
    np.testing.assert_array_equal(into_C, values_RC[2])
