"""The whole model's training on families that are not plain Llama: what comes out is what transformers reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.sweep import sweep

ROWS_NS = torch.randint(3, 256, (2, 96), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "activation", "written"),
    [("gemma3_text", "drelu", "drelu"), ("gemma3_text", "tswiglu", "tgeglu"), ("qwen3_moe", "tswiglu", "tswiglu")],
)
def test_a_recovered_family(make_family: Callable[..., Path], tmp_path: Path, name: str, activation: str, written: str):
    out = tmp_path / "out"
    training = LocalRecovery(steps=2, batch_tokens=64, target_sparsity=0.75)
    full = FullRecovery(tokens=1024, batch_tokens=256, micro_tokens=256, evaluations=2)
    relufy(
        RelufyConfig(
            model=str(make_family(name)), out=out, recover="full", activation=activation, tokens=2048, context=64,
            min_expert_tokens=1, training=training, full=full,
        )
    )  # fmt: skip
    checkpoint = Checkpoint(out)
    assert (checkpoint.spec.family, checkpoint.spec.activation) == (name, written)
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = model(input_ids=ROWS_NS).logits
    ours = torch.stack(list(sweep(checkpoint, ROWS_NS, []).logits(slice(None))))
    assert float((ours - theirs).abs().max() / theirs.std()) <= 1e-5
