"""Models with other parts than the language model: that one is read, as transformers has it alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.find_tensors import find_tensors
from tsconvert.model.sweep import sweep

Make = Callable[..., Path]
ROWS_NS = torch.randint(3, 256, (2, 48), generator=torch.Generator().manual_seed(1))
BEGINNINGS = {
    "as on the hub": ("vision_tower.", "multi_modal_projector."),
    "as transformers 5 saves it": ("model.vision_tower.", "model.multi_modal_projector."),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", BEGINNINGS)
@pytest.mark.parametrize(
    ("kind", "inside"), [("mistral3", "mistral"), ("mistral3", "ministral3"), ("gemma3", "gemma3_text")]
)
def test_the_language_model_is_read(make_family: Make, tmp_path: Path, kind: str, inside: str, names: str):
    alone, folder = make_family(inside), tmp_path / "whole"
    folder.mkdir()
    for file in alone.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    text = json.loads((alone / "config.json").read_text())
    config = {"model_type": kind, "text_config": text, "vision_config": {"hidden_size": 8}, "eos_token_id": [2, 7]}
    (folder / "config.json").write_text(json.dumps(config))
    hub, *others = names == "as on the hub", *BEGINNINGS[names]
    tensors = {
        f"language_model.{name}" if hub else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(alone / "model.safetensors").items()
    }
    tensors |= {f"{other}a.weight": torch.ones(2, 2) for other in others}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    found = find_tensors(folder)
    assert found.notes == [f"{kind}: its language model ({inside}) is read; its other parts, 2 tensors, are left out"]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32)(input_ids=ROWS_NS).logits
    ours = torch.stack(list(sweep(Checkpoint(folder), ROWS_NS, []).logits(slice(None))))
    assert float((ours - theirs).abs().max() / theirs.std()) <= 1e-5
    out = tmp_path / "out"
    relufy(RelufyConfig(model=str(folder), out=out, recover="none", align=False))
    written = json.loads((out / "config.json").read_text())
    assert (written["model_type"], written["eos_token_id"]) == (
        f"turbosparse_{inside}",
        text.get("eos_token_id", [2, 7]),
    )
    assert set(load_file(out / "model.safetensors")) == set(load_file(alone / "model.safetensors"))
