"""Every family's dense file, run by llama.cpp: the logits of transformers' AutoModel."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.families import FAMILIES
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.quant.export import ExportConfig, export_unverified

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
Make = Callable[..., Path]


def with_a_token_that_llama_cpp_asks_for(path: Path) -> None:
    """Rename a token in place: llama.cpp ends where a `phi3` vocabulary has no `<|endoftext|>`."""
    wanted = b"<|endoftext|>"
    tokens = [token.encode() for token in GgufFile(path).metadata["tokenizer.ggml.tokens"]]
    token = next(token for token in reversed(tokens) if len(token) == len(wanted))
    path.write_bytes(path.read_bytes().replace(token, wanted, 1))


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_what_transformers_does(name: str, make_family: Make, llama_cpp: Callable, tmp_path: Path):
    """Beyond the window where llama.cpp has one, and beyond the original context of a scaled rope."""
    folder = make_family(name)
    export_unverified(ExportConfig(model=folder, out=tmp_path / "model.gguf", type_name="F32"))
    if name == "phi3":
        with_a_token_that_llama_cpp_asks_for(tmp_path / "model.gguf")
    spec, native = Checkpoint(folder).spec, "windows" in FAMILIES[name].gguf.native
    tokens = 100 if spec.sliding_window is None or native else spec.sliding_window - 2
    ids = [1, *np.random.default_rng(0).integers(300, 4000, tokens - 1).tolist()]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits_V = model(torch.tensor([ids])).logits[0, -1].double()
    expected_V = torch.log_softmax(logits_V, -1)
    for token, logprob in llama_cpp(tmp_path / "model.gguf").logprobs(ids).items():
        assert logprob == pytest.approx(float(expected_V[token]), abs=1e-3 * float(logits_V.std()))
