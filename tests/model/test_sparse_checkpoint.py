"""The folder of a converted model, as transformers reads it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.sweep import sweep
from tsconvert.quant.export import ExportConfig, export_unverified

Make = Callable[..., Path]
ROWS_NS = torch.randint(3, 4096, (2, 96), generator=torch.Generator().manual_seed(1))
LLAMA3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: list[Mapping[str, Any]] = [
    {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}},
    {"rope_scaling": LLAMA3},
    {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 32},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"type": "default"}},
]


def with_hub_form(folder: Path, fields: Mapping[str, Any]) -> Path:
    """The folder with theta and the scaling as Llama 3.x and YaRN models on the hub have them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters")
    path.write_text(json.dumps(config | {"rope_theta": 5e5} | fields))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scaling", range(len(SCALINGS)))
@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_a_converted_model_with_scaled_rope(make_checkpoint: Make, tmp_path: Path, family: str, scaling: int):
    dense = with_hub_form(make_checkpoint(family, head_dim=16), SCALINGS[scaling])
    out = tmp_path / "s"
    relufy(RelufyConfig(model=str(dense), out=out, recover="none", align=False))
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("the sea").input_ids == AutoTokenizer.from_pretrained(dense)("the sea").input_ids
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=True)("the sea") == tokenizer("the sea")
    theta = AutoConfig.from_pretrained(dense).rope_parameters["rope_theta"]
    assert AutoConfig.from_pretrained(out, trust_remote_code=True).rope_parameters["rope_theta"] == theta == 5e5
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    rotary = AutoModelForCausalLM.from_pretrained(dense).model.rotary_emb
    assert torch.equal(model.model.rotary_emb.inv_freq, rotary.inv_freq)
    assert model.model.rotary_emb.attention_scaling == rotary.attention_scaling
    with torch.no_grad():
        theirs = model(input_ids=ROWS_NS).logits
    ours = torch.stack(list(sweep(Checkpoint(out), ROWS_NS, []).logits(slice(None))))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    export_unverified(ExportConfig(model=str(out), out=tmp_path / "s.gguf", type_name="F16"))


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_an_older_version_is_exported(make_checkpoint: Make, tmp_path: Path):
    """They kept the hub's form, which AutoTokenizer of transformers 5.23 fails on."""
    dense = make_checkpoint("llama")
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "s", recover="none", align=False))
    old = with_hub_form(Path(shutil.copytree(tmp_path / "s", tmp_path / "old")), SCALINGS[3])
    export_unverified(ExportConfig(model=str(old), out=tmp_path / "old.gguf", type_name="F16"))


@pytest.mark.filterwarnings("ignore")
def test_yarn_without_a_head_dim(make_checkpoint: Make, tmp_path: Path):
    """transformers' Mixtral fails on that; the converted model says what its head_dim is."""
    dense = with_hub_form(make_checkpoint("mixtral"), SCALINGS[2])
    config = json.loads((dense / "config.json").read_text())
    config.pop("head_dim")
    (dense / "config.json").write_text(json.dumps(config))
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "s", recover="none", align=False))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "s", trust_remote_code=True)
    with torch.no_grad():
        theirs = model(input_ids=ROWS_NS).logits
    ours = torch.stack(list(sweep(Checkpoint(tmp_path / "s"), ROWS_NS, []).logits(slice(None))))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
