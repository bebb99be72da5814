"""Processors without AVX2: the detection, the rows in NumPy, and a whole run with the instructions switched off."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tsconvert.model.files.gguf import ggml, numpy_row_functions
from tsconvert.quant.types.encoding import quantize

ENVIRONMENT = {
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 F16C",
    "NUMBA_CPU_NAME": "nehalem",
    "NUMBA_CPU_FEATURES": "",
    "ATEN_CPU_CAPABILITY": "default",
}
SENTENCE = (
    "this processor has no AVX2, FMA3, F16C: IQ4_NL is computed by NumPy, many times slower;"
    " Q4_0, Q8_0, Q4_K, Q6_K and F16 have kernels that run here\n"
)


def without_avx2(*arguments: str, **more: str) -> subprocess.CompletedProcess:
    environment = os.environ | ENVIRONMENT | more
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)


def test_what_is_lacking_is_found_and_ggml_s_library_is_left_alone():
    code = "from tsconvert.model.files.gguf import ggml, numpy_row_functions as f; print(f.lacking(), ggml._CPU)"
    assert without_avx2("-c", code).stdout == "['AVX2', 'FMA3', 'F16C'] None\n"


@pytest.mark.parametrize("type_name", ["Q4_1", "Q5_K", "IQ4_NL"])
def test_a_row_times_an_input_is_that_of_the_decoded_row(capsys, monkeypatch, type_name: str):
    monkeypatch.setattr(numpy_row_functions, "lacking", lambda: ["AVX2"])
    rng = np.random.default_rng(0)
    row_C, x_C = rng.normal(size=(2, 512)).astype(np.float32)
    raw = quantize(row_C[None], type_name)
    address = numpy_row_functions.vec_dot(type_name, ggml.row_functions(type_name).to_float)
    dot = ctypes.cast(address, numpy_row_functions._VEC_DOT)
    out = ctypes.c_float()
    for _ in range(2):
        dot(512, ctypes.byref(out), 0, raw.ctypes.data, 0, x_C.ctypes.data, 0, 1)
    assert out.value == pytest.approx(float(ggml.dequantize(raw, type_name, (512,)) @ x_C), rel=1e-5)
    expected = SENTENCE.replace("AVX2, FMA3, F16C", "AVX2").replace("IQ4_NL", type_name)
    assert capsys.readouterr().err == expected


@pytest.mark.slow
def test_a_model_runs_without_avx2(tmp_path: Path):
    from tsconvert.quant.export import ExportConfig, export_unverified

    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model="tiny-mistral", out=file, type_name="IQ4_NL"))
    score = ["-m", "tsconvert", "eval", str(file), "--tokens", "256", "--ctx", "128", "--json"]
    here = subprocess.run([sys.executable, *score], capture_output=True, text=True, check=True)
    there = without_avx2(*score, NUMBA_CACHE_DIR=str(tmp_path))
    assert SENTENCE in there.stderr
    found = [float(done.stdout.split('"perplexity": ')[1].split(",")[0]) for done in (here, there)]
    assert found[1] == pytest.approx(found[0], rel=0.02)
