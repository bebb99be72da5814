"""Every encoder: ggml's bytes, also for zeros, denormals, spikes, and importances of any size."""

import numpy as np
import pytest

from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.model.tensor_names import shape_of
from tsconvert.quant.types import q8_0_q4_0
from tsconvert.quant.types.encoding import encode, quantize

RNG = np.random.default_rng(11)
SLOW = ("IQ1_S", "IQ1_M")  # their tables take ggml seconds
QUICK = ("Q4_0", "Q4_1", "Q8_0", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")
TYPES = [each for each in ggml.weight_types() if each not in SLOW and each not in ("F32", "F16", "BF16")]
ROWS, COLUMNS = 2, 256
WEIGHTS = {
    "zeros": np.zeros((ROWS, COLUMNS)),
    "denormals": np.full((ROWS, COLUMNS), 1e-40),
    "tiny": RNG.standard_normal((ROWS, COLUMNS)) * 1e-30,
    "large": RNG.uniform(-6.5e4, 6.5e4, (ROWS, COLUMNS)),
    "a spike": np.where(np.arange(COLUMNS) == 7, 6e4, 1e-3) * RNG.standard_normal((ROWS, COLUMNS)).clip(-1, 1),
    "all sizes": RNG.uniform(-1, 1, (ROWS, COLUMNS)) * 10.0 ** RNG.integers(-38, 4, (ROWS, COLUMNS)),
}
IMPORTANCES = {
    "ones": np.ones(COLUMNS), "zeros": np.zeros(COLUMNS), "denormals": np.full(COLUMNS, 1e-45),
    "large": np.full(COLUMNS, 1e15), "all sizes": 10.0 ** RNG.integers(-44, 16, COLUMNS),
}  # fmt: skip


@pytest.mark.parametrize(
    "type_name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in TYPES]
)
def test_what_is_finite_stays_finite(type_name: str):
    for weights in WEIGHTS.values():
        for importance in IMPORTANCES.values():
            raw = quantize(weights.astype(np.float32), type_name, importance.astype(np.float32))
            decoded = ggml.dequantize(raw, type_name, weights.shape)
            assert np.isfinite(decoded).all()
            assert np.abs(decoded).max() <= 4 * np.abs(weights).max() + 1e-6


def adversarial() -> np.ndarray:
    """Rows of 256: zeros, denormals, huge, one outlier, ties, signs, and random ones."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((24, 256)).astype(np.float32) * 0.02
    rows = [
        np.zeros(256), np.full(256, -0.0), np.full(256, 1e-45), np.full(256, -3e-39), rng.standard_normal(256) * 1e-40,
        rng.standard_normal(256) * 1e30, np.full(256, 0.5), np.tile([1.0, -1.0], 128), np.tile([-1.0, 1.0], 128),
        np.where(np.arange(256) == 77, 1e4, normal[0]), np.where(np.arange(256) % 32 == 31, -8.0, 8.0),
        np.arange(256) / 254, np.arange(-128, 128) / 127 * 8.5, rng.integers(-3, 4, 256) / 2, np.full(256, 65504.0),
        np.where(np.arange(256) < 32, 0, normal[1]), np.float32(2) ** -rng.integers(0, 126, 256),
    ]  # fmt: skip
    return np.concatenate([np.array(rows, np.float64).astype(np.float32), normal])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ggml.weight_types())
def test_every_type_is_ggmls_on_adversarial_rows(name: str, weighted: bool):
    rows_RC = adversarial()
    if name == "F16":
        rows_RC = rows_RC[np.abs(rows_RC).max(axis=1) < 65520]
    if name.startswith(("IQ", "TQ")):  # ggml aborts on scales that overflow
        rows_RC = rows_RC[np.abs(rows_RC).max(axis=1) < 1e20]
    importance_C = np.random.default_rng(1).random(256).astype(np.float32) + 0.1 if weighted else None
    if ggml.needs_importance(name) and not weighted:
        pytest.skip(f"{name} needs importances")
    bits_RC = (rows_RC.view(np.uint32) >> 16).astype(np.uint16)
    half_RC = (bits_RC.astype(np.uint32) << 16).view(np.float32)
    for raw_RC, dtype, floats_RC in ((rows_RC, "F32", rows_RC), (bits_RC, "BF16", half_RC)):
        expected = ggml.quantize_chunk(floats_RC, name, importance_C)
        found = encode(raw_RC, dtype, name, importance_C)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name.startswith("IQ") else name for name in ggml.weight_types()],
)
def test_every_type_is_ggmls_on_the_embedded_model(name: str):
    """All matrices of tiny-mistral, wholly; those whose rows the type does not fit are reshaped."""
    checkpoint = open_checkpoint("tiny-mistral")
    for place in checkpoint.places:
        if len(shape_of(checkpoint.spec, place)) < 2:
            continue
        raw_RC = checkpoint.raw(place).view(np.uint16).reshape(-1, 256)
        floats_RC = (raw_RC.astype(np.uint32) << 16).view(np.float32)
        importance_C = np.square(floats_RC).mean(axis=0) + 1e-6 if ggml.needs_importance(name) else None
        found = encode(raw_RC, "BF16", name, importance_C)
        assert np.array_equal(found, ggml.quantize_chunk(floats_RC, name, importance_C)), place


def test_q8_0_and_q4_0_in_vectors_leave_to_ggml_what_c_leaves_open():
    tiny = np.zeros((1, 64), np.float32)
    tiny[0, 3] = 1e-40
    assert q8_0_q4_0.quantize(tiny, "Q4_0") is None
    ordinary = np.random.default_rng(2).standard_normal((1024, 4096)).astype(np.float32)
    for name in q8_0_q4_0.BLOCK_BYTES:
        assert np.array_equal(q8_0_q4_0.quantize(ordinary, name), ggml.quantize_chunk(ordinary, name, None))


def test_half_scales_are_those_of_ieee():
    bits = np.random.default_rng(3).integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32)
    edges = (
        (np.arange(85, 150, dtype=np.uint32)[:, None] << 23)
        | np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFFFF], np.uint32)
    ).ravel()
    bits = np.concatenate([edges, bits[np.isfinite(bits.view(np.float32))][:5000]])
    with np.errstate(over="ignore"):  # scalars wrap around silently in compiled code only
        expected = bits.view(np.float32).astype(np.float16).view(np.uint16)
        found = [int(q8_0_q4_0.half_bits(np.uint32(value))) for value in bits]
    assert np.array_equal(found, expected)
