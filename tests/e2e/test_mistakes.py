"""A folder with four mistakes, mended one after the other: each command says the first of them, and ends with 2."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tsconvert import cli

SHORT = ("--tokens", "1K", "--context", "64", "--steps", "2", "--batch-tokens", "128")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments], prog_name="tsconvert")
    said = capsys.readouterr()
    assert stop.value.code == 2, said.err
    assert "Traceback" not in said.err
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0].removeprefix("error: ")


def test_each_mistake_is_told_by_the_first_command_that_meets_it(
    make_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = make_checkpoint("mistral", vocab_size=300, max_shard="100KB", seed=9)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    config_file, out, file = folder / "config.json", tmp_path / "out", tmp_path / "out.gguf"
    relufy = ("relufy", folder, "--out", out, *SHORT)

    shard = folder / index["weight_map"]["model.norm.weight"]
    shard.rename(tmp_path / "kept")
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(config | {"hidden_size": 128}))
    spoilt = folder / index["weight_map"]["model.layers.0.mlp.up_proj.weight"]
    tensors = load_file(spoilt)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, spoilt, metadata={"format": "pt"})

    sentence = f"{shard}: shard is missing (named in model.safetensors.index.json); download it again"
    for command in (relufy, ("inspect", folder), ("export-gguf", folder, "--out", file)):
        assert refusal(capsys, *command) == sentence

    (tmp_path / "kept").rename(shard)
    for command in (relufy, ("inspect", folder), ("imatrix", folder, "--out", file)):
        assert refusal(capsys, *command).endswith(
            "; config and weights belong to different models, download both again"
        )

    config_file.write_text(json.dumps(config))
    for command in (relufy, ("imatrix", folder, "--out", file), ("eval", folder, "--tokens", "1K", "--ctx", "64")):
        said = refusal(capsys, *command)
        foreign = said.endswith("and the model has 300 tokens; copy the model's own tokenizer there")
        assert foreign or "holds 1 values that are NaN or infinite, the first in row 3" in said

    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 0
    save_file(tensors, spoilt, metadata={"format": "pt"})
    assert refusal(capsys, "export-gguf", folder, "--out", file) == (
        f"{folder}: the tokenizer has 4096 tokens and the model has 300, so 3796 pieces of text have no embedding; copy"
        " the model's own tokenizer there"
    )
    for command in (relufy, ("eval", folder, "--tokens", "1K", "--ctx", "64")):
        assert refusal(capsys, *command).endswith("and the model has 300 tokens; copy the model's own tokenizer there")
    assert not out.exists()
    assert not file.exists()
