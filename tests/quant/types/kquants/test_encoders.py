"""The vectorised K-quant encoders give ggml's bytes: random, real and adversarial weights, with importances or not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from tsconvert import embedded
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types import encoding
from tsconvert.quant.types.kquants import encoders

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
COLUMNS = 512


def assert_same(rows_RC: np.ndarray, type_name: str, importance_C: np.ndarray | None = None, what: str = "") -> None:
    rows_RC = np.ascontiguousarray(rows_RC, np.float32)
    assert np.isfinite(rows_RC).all()
    ours = encoders.quantize_rows(rows_RC, type_name, importance_C)
    if ours is None:
        pytest.skip("on this processor ggml encodes")
    size = ggml.TYPES[type_name].size_bytes
    wrong_B = (ours.reshape(-1, size) != ggml.quantize_chunk(rows_RC, type_name, importance_C).reshape(-1, size)).any(
        axis=1
    )
    assert not wrong_B.any(), f"{type_name} {what}: {wrong_B.sum()} of {len(wrong_B)} blocks differ"


def adversarial() -> Iterator[tuple[str, np.ndarray]]:
    """Weights that reach every branch: nothing, ties, what overflows and what vanishes in single and half precision."""
    rng = np.random.default_rng(5)

    def normal(rows: int = 4) -> np.ndarray:
        return rng.standard_normal((rows, COLUMNS)).astype(np.float32)

    yield "zero", np.zeros((3, COLUMNS))
    yield "negative zero", -np.zeros((3, COLUMNS))
    for value in (1, 1e-30, 3e-8, 1e30, 3e38, 1e-45, 65504, 6e-8, 1e-15, 9e-16):
        for sign in (1, -1):
            yield f"constant {sign * value}", np.full((2, COLUMNS), sign * value)
    for exponent in range(-45, 38, 3):  # scales underflow half precision below 1e-6, overflow above 1e6
        yield f"normal * 1e{exponent}", normal().astype(np.float64) * 10.0**exponent
    yield "denormal", rng.integers(-100, 100, (8, COLUMNS)) * 1.4e-45
    for outlier in (1e3, -1e3, 1e10, -1e30, 3e38):
        for rest in (1, 0, 1e-20):
            rows_RC = normal(8) * np.float32(rest)
            rows_RC[np.arange(8), rng.integers(0, COLUMNS, 8)] = outlier
            yield f"outlier {outlier} in {rest}", rows_RC
    for steps in (2, 3, 4, 7, 15, 16, 30, 31, 32, 63, 64, 128):
        yield f"ties of {steps}", rng.integers(-steps, steps + 1, (8, COLUMNS)) / np.float32(2 * steps)
    yield "halves", rng.integers(-64, 64, (8, COLUMNS)) + 0.5
    yield "negative", -np.abs(normal())
    yield "positive", np.abs(normal())
    yield "alternating", np.tile([1, -1], (4, COLUMNS // 2)) * np.abs(normal())
    yield "plus and minus one", np.tile([1, -1], (4, COLUMNS // 2))
    yield "two values", rng.choice([0.1, 0.3], (8, COLUMNS))
    yield "ramp", np.tile(np.linspace(-1, 1, COLUMNS), (2, 1))
    yield "sparse", normal() * (rng.random((4, COLUMNS)) < 0.03)
    yield "heavy tails", rng.standard_t(2, (16, COLUMNS))
    yield "far from zero", normal() * 1e-6 - 1
    yield "every scale", normal(16) * np.exp(rng.uniform(-80, 80, (16, COLUMNS)))
    yield "sub-blocks of every scale", normal(16) * np.repeat(np.exp(rng.uniform(-60, 60, (16, 32))), 16, axis=1)
    bits_RC = rng.integers(0, 2**32, (32, COLUMNS), np.uint32).view(np.float32)
    yield "any bits", np.where(np.isfinite(bits_RC), bits_RC, 0)


def importances() -> Iterator[tuple[str, np.ndarray | None]]:
    rng = np.random.default_rng(6)
    yield "no importances", None
    yield "importances", rng.random(COLUMNS).astype(np.float32)
    yield "importances of every scale", np.exp(rng.uniform(-30, 30, COLUMNS)).astype(np.float32)
    yield "half the columns without importance", (rng.random(COLUMNS) < 0.5).astype(np.float32)
    yield "no column of importance", np.zeros(COLUMNS, np.float32)
    yield "largest importances", np.full(COLUMNS, 3e38, np.float32)
    yield "denormal importances", np.full(COLUMNS, 1e-44, np.float32)
    yield "negative importances", rng.standard_normal(COLUMNS).astype(np.float32)


@pytest.mark.parametrize("type_name", TYPES)
def test_adversarial_weights(type_name: str):
    with np.errstate(over="ignore", under="ignore"):
        cases = [(name, np.asarray(rows_RC, np.float32)) for name, rows_RC in adversarial()]
    rows_RC = np.concatenate([rows_RC for _, rows_RC in cases])
    names = np.concatenate([np.full(len(rows_RC), name) for name, rows_RC in cases])
    for importance_name, importance_C in importances():
        for start in range(0, len(rows_RC), 64):
            part = slice(start, start + 64)
            assert_same(rows_RC[part], type_name, importance_C, f"{importance_name}, {sorted(set(names[part]))}")


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_and_scales(type_name: str, seed: int):
    rng = np.random.default_rng(100 + seed)
    rows, columns = int(rng.integers(1, 90)), 256 * int(rng.integers(1, 8))  # tiles that are not full
    rows_RC = rng.standard_normal((rows, columns)) * np.exp(rng.normal(-3, 2, (rows, 1)))
    importance_C = rng.gamma(0.5, 1, columns).astype(np.float32)
    for weights_C in (None, importance_C):
        assert_same(rows_RC, type_name, weights_C, f"seed {seed}")


@pytest.mark.parametrize("type_name", TYPES)
def test_all_tensors_of_the_embedded_default(type_name: str):
    checkpoint = open_checkpoint(embedded.folder("tiny-mistral"))
    matrices = [place for place in checkpoint.places if len(checkpoint.info(place).shape) == 2]
    assert len(matrices) > 10
    for place in matrices:
        flat = checkpoint.array(place).reshape(-1)
        assert_same(flat[: flat.size // 256 * 256].reshape(-1, 256), type_name, what=str(place))


def test_read_only_rows_are_read_where_they_lie():
    rows_RC = np.random.default_rng(1).standard_normal((3, COLUMNS)).astype(np.float32)
    rows_RC.flags.writeable = False
    assert_same(rows_RC, "Q4_K")


def test_what_is_not_covered_is_left_to_ggml():
    assert encoders.quantize_rows(np.zeros((1, 288), np.float32), "Q4_K") is None
    assert encoders.quantize_rows(np.zeros((1, 256), np.float32), "Q8_0") is None
    assert encoders.quantize_rows(np.zeros((1, 256), np.float32), "IQ4_XS") is None


def test_quantize_takes_the_fast_encoders_once_there_is_much_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encoding, "_k_weights", 0)
    rows_RC = np.random.default_rng(2).standard_normal((6000, 1024)).astype(np.float32)  # six chunks
    if encoders.quantize_rows(rows_RC[:1], "Q3_K") is None:
        pytest.skip("on this processor ggml encodes")
    before = encoders._tries.cache_info()
    np.testing.assert_array_equal(encoding.quantize(rows_RC, "Q3_K"), ggml.quantize_chunk(rows_RC, "Q3_K"))
    after = encoders._tries.cache_info()
    calls = after.hits + after.misses - before.hits - before.misses
    assert calls == 2  # ggml had the first four million weights


OTHER_PROCESSOR = """
import numpy as np
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types.kquants import encoders
rng = np.random.default_rng(7)
rows_RC = (rng.standard_normal((200, 512)) * np.exp(rng.normal(-3, 6, (200, 1)))).astype(np.float32)
for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"):
    for weights_C in (None, rng.random(512, np.float32)):
        ours = encoders.quantize_rows(rows_RC, name, weights_C)
        assert ours is None or np.array_equal(ours, ggml.quantize_chunk(rows_RC, name, weights_C)), name
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "features"),
    [("x86-64", "+sse2"), ("haswell", "+avx,+avx2,+fma,+f16c,+bmi,+bmi2")],
)
def test_other_processors_give_the_same_bytes(processor: str, features: str, tmp_path: Path):
    here = llvm.get_host_cpu_features()
    if not all(here.get(feature) for feature in features.replace("+", "").split(",")):
        pytest.skip("this processor cannot run that code")
    settings = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", OTHER_PROCESSOR], env=os.environ | settings, check=True)
