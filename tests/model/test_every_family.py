"""Every family, from its `tiny` config: transformers' AutoModel against our layers and the folders that we write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tsconvert.convert.config import LocalRecovery, RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.families import FAMILIES
from tsconvert.model.families.family import Family
from tsconvert.model.sweep import sweep
from tsconvert.model.whole_model import dense_model, sparse_model
from tsconvert.text.tokenizer import load_tokenizer

MakeFamily = Callable[..., Path]
ROWS_NS = torch.randint(3, 256, (2, 96), generator=torch.Generator().manual_seed(1))
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
pytestmark = pytest.mark.filterwarnings("ignore")


def spread(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.std())


def of_transformers(folder: Path, trust: bool = False) -> torch.Tensor:
    with torch.no_grad():
        return model_of(folder, trust)(input_ids=ROWS_NS).logits


def model_of(folder: Path, trust: bool = False) -> Any:
    # transformers 5.0 takes sdpa for a dense Gemma 2, and leaves its soft cap out
    options = {} if trust or "gemma2" not in str(folder) else {"attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32, **options).eval()


def of_layers(folder: Path) -> torch.Tensor:
    return torch.stack(list(sweep(Checkpoint(folder), ROWS_NS, []).logits(slice(None))))


@every_family
def test_our_layers_are_transformers(make_family: MakeFamily, family: Family):
    """Beyond the sliding window and the original context of a scaled rope."""
    folder = make_family(family.name)
    theirs = of_transformers(folder)
    assert spread(of_layers(folder), theirs) <= 1e-5
    with torch.no_grad():
        whole = dense_model(Checkpoint(folder), torch.float32)(input_ids=ROWS_NS).logits
    assert torch.equal(whole, theirs)


@every_family
@pytest.mark.parametrize("activation", ["drelu", "reglu"])
def test_the_sparse_folder(make_family: MakeFamily, tmp_path: Path, family: Family, activation: str):
    """Transformers, with the code that is saved there, gives what our layers give; only the activation differs."""
    folder, out = make_family(family.name), tmp_path / "out"
    config = RelufyConfig(model=str(folder), out=out, activation=activation, recover="none", tokens=1024, context=64)
    relufy(config)
    theirs = of_transformers(out, trust=True)
    assert AutoTokenizer.from_pretrained(out)("the sea").input_ids == load_tokenizer(folder)("the sea").input_ids
    assert AutoConfig.from_pretrained(out, trust_remote_code=True).model_type == family.sparse_type
    assert spread(of_layers(out), theirs) <= 1e-5
    with torch.no_grad():
        assert spread(sparse_model(Checkpoint(out)).eval()(input_ids=ROWS_NS).logits, theirs) <= 1e-6
    model = model_of(folder)
    dense = of_transformers(folder)
    if activation == "reglu":  # alignment changes nothing under ReGLU
        for layer in model.model.layers:
            part = layer.mlp.experts if family.experts else layer.mlp
            part.act_fn = part.activation_fn = torch.nn.ReLU()
        with torch.no_grad():
            assert spread(model(input_ids=ROWS_NS).logits, theirs) <= 1e-5
    assert spread(theirs, dense) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "phi3"])
def test_a_recovered_folder(make_family: MakeFamily, tmp_path: Path, name: str):
    """Trained layers are written in the family's own layout, and read back."""
    out = tmp_path / "out"
    training = LocalRecovery(steps=2, batch_tokens=64)
    relufy(
        RelufyConfig(
            model=str(make_family(name)), out=out, tokens=1024, context=64, min_expert_tokens=1, training=training
        )
    )
    assert spread(of_layers(out), of_transformers(out, trust=True)) <= 1e-5
    assert json.loads((out / "config.json").read_text())["model_type"] == f"turbosparse_{name}"
