"""Numbers at the ends of their types, in every encoder: zeros, denormals, spikes, and importances of any size."""

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.quant.gguf.tensor_plan import TensorPlan
from tsconvert.quant.gguf.tensor_writer import check_tensors
from tsconvert.quant.imatrix.file import Entry, ImportanceMatrix, load_imatrix, save_imatrix
from tsconvert.quant.types import ggml
from tsconvert.quant.types.encoding import quantize

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


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_K", "IQ2_XS"])
def test_values_beyond_the_scales_of_a_type_are_refused(type_name: str):
    values = np.ones((1, 256), np.float32)
    values[0, 3] = 7e4
    plan = TensorPlan(name="x.weight", shape=(1, 256), type_name=type_name, source=lambda: [values])
    with pytest.raises(TsconvertError, match=r"^x\.weight: values reach 70000.* --tensor-type x\.weight=F32$"):
        check_tensors([plan])
    check_tensors([TensorPlan(name="x.weight", shape=(1, 256), type_name="F32", source=lambda: [values])])


def test_importances_beyond_what_can_be_weighed_are_refused(tmp_path):
    path = tmp_path / "i.gguf"
    sums = np.full((1, 256), 3e38, np.float32)
    save_imatrix(ImportanceMatrix(entries={"x.weight": Entry(sums, np.ones(1, np.float32))}), path)
    with pytest.raises(TsconvertError) as caught:
        load_imatrix(path)
    assert str(caught.value) == f"{path}: x.weight has mean squares up to 3e+38; make the importance matrix again"
