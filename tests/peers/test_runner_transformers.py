"""The runner against transformers in float32, on a real model: the whole distribution, and greedy tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsconvert import embedded
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

pytestmark = pytest.mark.peer


def divergences(reference_TV: torch.Tensor, blocks, start: int = 0) -> np.ndarray:
    """KL(reference || ours) of each position, block by block."""
    found = []
    for block_TV in blocks:
        ours = torch.log_softmax(torch.from_numpy(block_TV).double(), -1)
        theirs = torch.log_softmax(reference_TV[start : start + len(block_TV)].double(), -1)
        start += len(block_TV)
        found += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
    return np.array(found)


@pytest.mark.parametrize(
    ("positions", "generated"), [(256, 48), pytest.param(2000, 256, marks=pytest.mark.slow)], ids=["256", "2000"]
)
def test_smollm2_in_float16_says_what_transformers_says(
    smollm2: Path, tmp_path: Path, positions: int, generated: int
) -> None:
    export_unverified(ExportConfig(model=smollm2, out=tmp_path / "m.gguf", target="llama.cpp", type_name="F16"))
    text = (embedded.folder("tiny-mistral").parent / "text" / "heldout.txt").read_text(encoding="utf-8")
    ids = AutoTokenizer.from_pretrained(smollm2).encode(text)[:positions]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    with torch.no_grad():
        reference_TV = model(torch.tensor([ids])).logits[0]
        answer = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, positions, dtype=torch.long), max_new_tokens=generated,
            do_sample=False, pad_token_id=0, eos_token_id=None,
        )[0, positions:].tolist()  # fmt: skip
    with load(tmp_path / "m.gguf", context=positions + generated) as ours:
        assert divergences(reference_TV, ours.logits_blocks(ids)).mean() < 1e-4
        pieces = ours.generate(ids, limit=generated, stop_at_eos=False)
        assert [piece.token for piece in pieces] == answer
