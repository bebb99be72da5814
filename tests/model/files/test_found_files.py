"""Folders that are no checkpoint: the message says what is there and what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.text.tokenizer import load_tokenizer

Make = Callable[..., Path]


def refusal(folder: Path) -> str:
    with pytest.raises(TsconvertError) as caught:
        open_checkpoint(folder)
    return str(caught.value)


FOUND = [
    ("consolidated.safetensors", "consolidated.safetensors is in its maker's own form"),
    ("consolidated.00.pth", "consolidated.00.pth is in its maker's own form"),
    ("pytorch_model.bin", "pytorch_model.bin is there, a pickle, which could run code and is not read: save it as"),
    ("x.Q4_0.gguf", "x.Q4_0.gguf is a GGUF file: give that, not its folder"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sentence"), FOUND)
@pytest.mark.parametrize("config", [False, True])
def test_weights_in_another_form(make_checkpoint: Make, tmp_path: Path, name: str, sentence: str, config: bool):
    (tmp_path / name).write_bytes(b"x")
    lacking = "no config.json"
    if config:
        (tmp_path / "config.json").write_text((make_checkpoint("llama") / "config.json").read_text())
        lacking = "no model.safetensors and no model.safetensors.index.json"
    said = refusal(tmp_path)
    assert said.startswith(f"{tmp_path}: {lacking}; {sentence}")
    assert "download" not in said


def test_an_adapter(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "meta/one"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    assert refusal(tmp_path) == (
        f"{tmp_path}: no config.json; a LoRA adapter of meta/one is there, not a model: merge it into its base model"
        " (peft's merge_and_unload), save that and give its folder"
    )


def test_shards_without_their_index(make_checkpoint: Make):
    folder = make_checkpoint("llama")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert refusal(folder) == (
        f"{folder}: no model.safetensors and no model.safetensors.index.json; model-00001-of-00002.safetensors is"
        " there, and the index says what is in it: copy model.safetensors.index.json there as well"
    )


def test_a_folder_of_checkpoints(tmp_path: Path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "config.json").write_text("{}")
    assert refusal(tmp_path) == (
        f"{tmp_path}: no config.json; folders with one are in it (checkpoint-5), give one of those"
    )


def test_a_damaged_tekken(tmp_path: Path):
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(TsconvertError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'tekken.json'}: no tekken tokenizer that can be read (KeyError('config')); download it again"
    )


OWN_CODE = (
    "tokenization_odd.py is code of the folder's own, which is not run: copy a tokenizer.json of the same model there"
)
SLOW = (
    "vocab.json and merges.txt do not say how text is split: make a tokenizer.json of them with transformers'"
    " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
)


@pytest.mark.parametrize(
    ("files", "advice"),
    [(["tokenization_odd.py", "tokenizer_config.json"], OWN_CODE), (["vocab.json", "merges.txt"], SLOW)],
)
def test_tokenizers_in_other_forms(files: list[str], advice: str, tmp_path: Path):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(TsconvertError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == f"{tmp_path}: no tokenizer (tokenizer.json, tokenizer.model or tekken.json); {advice}"
