"""Block types against gguf-py, which decodes them in NumPy on its own."""

import gguf
import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types.encoding import quantize

DECODED_BY_BOTH = [name for name in ggml.weight_types() if not name.startswith(("IQ1", "IQ2", "IQ3"))]


@pytest.mark.parametrize("name", ggml.TYPES)
def test_sizes_are_those_of_gguf_py(name):
    block = ggml.TYPES[name]
    kind = gguf.GGMLQuantizationType[name]
    assert block.id == kind.value
    if name != "Q8_1":  # gguf-py counts two float32 where ggml has two float16
        assert (block.weights, block.size_bytes) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("name", DECODED_BY_BOTH)
def test_decoding_is_that_of_gguf_py(name):
    values_RC = np.random.default_rng(1).standard_normal((5, 512)).astype(np.float32)
    raw = quantize(values_RC, name)
    assert raw.shape == (5, ggml.row_bytes(name, 512))
    decoded_RC = ggml.dequantize(raw, name, values_RC.shape)
    np.testing.assert_array_equal(decoded_RC, gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))
    assert np.corrcoef(decoded_RC.ravel(), values_RC.ravel())[0, 1] > (0.6 if name.startswith("TQ") else 0.85)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_encoding_is_that_of_gguf_py(name):
    values_RC = np.random.default_rng(2).standard_normal((3, 96)).astype(np.float32)
    np.testing.assert_array_equal(
        quantize(values_RC, name).reshape(-1),
        gguf.quants.quantize(values_RC, gguf.GGMLQuantizationType[name]).reshape(-1).view(np.uint8),
    )


# sqrt(sum of squared errors) / count on ggml's own test data: the bounds of its tests/test-quantize-fns.cpp
ERRORS = {"Q2_K": 0.0075, "IQ2_S": 0.0075, "IQ2_XS": 0.0075, "IQ2_XXS": 0.0075, "Q3_K": 0.004, "IQ3_S": 0.004}
ERRORS |= {"IQ3_XXS": 0.005, "TQ1_0": 0.01, "TQ2_0": 0.01, "MXFP4": 0.003}
ERRORS |= {"IQ1_S": 0.0125, "IQ1_M": 0.0125}  # ggml has none for these two; they lie at 0.0098 and 0.0122
USUAL_ERROR = 0.002


SLOW = ("IQ1_S", "IQ1_M", "IQ2_S", "IQ2_XS")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in ggml.weight_types()])
def test_decoded_errors_are_within_ggmls_bounds(name):
    values_RC = (0.1 + 2 * np.cos(np.arange(4096.0))).astype(np.float32)[None]
    importance_C = np.ones(4096, np.float32) if ggml.needs_importance(name) else None
    decoded_RC = ggml.dequantize(quantize(values_RC, name, importance_C), name, values_RC.shape)
    error = np.linalg.norm((decoded_RC - values_RC).astype(np.float64)) / values_RC.size
    assert error < ERRORS.get(name, USUAL_ERROR)


def test_float_types_are_exact_and_chunks_fit_together():
    values_RC = np.random.default_rng(3).standard_normal((37, 65536)).astype(np.float32)  # three chunks
    raw = quantize(values_RC, "F32")
    np.testing.assert_array_equal(raw.view(np.float32), values_RC)
    half = ggml.dequantize(quantize(values_RC, "F16"), "F16", values_RC.shape)
    np.testing.assert_array_equal(half, values_RC.astype(np.float16).astype(np.float32))


def test_importance_spares_the_columns_that_matter():
    values_RC = np.random.default_rng(4).standard_normal((64, 256)).astype(np.float32)
    importance_C = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)
    errors = [
        np.square(ggml.dequantize(quantize(values_RC, "Q2_K", weights), "Q2_K", (64, 256)) - values_RC)[:, ::4].mean()
        for weights in (None, importance_C)
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ggml.row_bytes("Q4_K", 576), "Q4_K stores 256 weights together, rows of 576 do not fit; use F16"),
        (lambda: quantize(np.zeros((1, 256), np.float32), "IQ2_XS"),
         "IQ2_XS needs an importance matrix; give --imatrix or choose another type"),
        (lambda: quantize(np.full((3, 32), [[1], [2], [np.nan]], np.float32), "Q8_0"),
         "row 2 holds NaN or infinity; the weights are damaged or training diverged, go back to a sound checkpoint"),
        (lambda: quantize(np.zeros((1, 32), np.float32), "Q8_0", np.zeros(31, np.float32)),
         "importance has shape [31] where rows have 32 columns; give one a column"),
        (lambda: ggml.dequantize(np.zeros(33, np.uint8), "Q8_0", (1, 32)),
         "Q8_0 of shape [1, 32] is 34 bytes, not 33; the file is damaged, write it again"),
        (lambda: ggml.dequantize(np.zeros(32, np.uint8), "I8", (1, 32)), "I8 holds no weights that could be decoded"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call, message):
    with pytest.raises(TsconvertError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["I32", "Q8_K", "Q4_X"])
def test_what_is_no_weight_type_is_refused_with_the_choices(name):
    with pytest.raises(TsconvertError, match=r"choose one of F32, F16, Q4_0, .*BF16"):
        quantize(np.zeros((1, 256), np.float32), name)
