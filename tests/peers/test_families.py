"""Every family, from its `tiny` config: the file for llama.cpp says in llama.cpp what it says in the runner."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert.model.families import FAMILIES
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
IDS = np.random.default_rng(0).integers(300, 4000, 96).tolist()
_GELU = 2e-2  # llama.cpp takes GELU from a table of float16


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities(make_windowless: Callable[..., Path], llama_cpp: Callable, tmp_path: Path, name: str):
    """Beyond the window of 24 tokens, where llama.cpp's architecture has one, and the original context of 32."""
    path = tmp_path / "m.gguf"
    # a name of our own: llama.cpp looks for Phi-3's tokens in models that are called so
    folder = make_windowless(name)
    export_unverified(ExportConfig(model=folder, out=path, type_name="F32", target="llama.cpp", name="tiny"))
    with load(path, mode="dense", cache_type="F32") as model:
        logits_V = model.feed(IDS).astype(np.float64)
        spec = model.spec
    found_V = logits_V - logits_V.max() - np.log(np.exp(logits_V - logits_V.max()).sum())
    for token, logprob in llama_cpp(path).logprobs(IDS).items():
        bound = _GELU if spec.activation == "geglu" else 1e-3
        assert found_V[token] == pytest.approx(logprob, abs=bound * float(logits_V.std()))
