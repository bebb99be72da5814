"""Predictors of others: PowerInfer's folders, and TurboSparse's checkpoints as their authors released them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.tensor_names import Place
from tsconvert.predictors.folder import load_predictors
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.targets.predictor_source import PredictorSource

Make = Callable[..., Path]
RANK = 16


def released(model: Path, out: Path, config: dict, prefix: Callable[[int, int], str], experts: int) -> Path:
    """The folder as on the hub: its config.json, and predictors under ``prefix``."""
    shutil.copytree(model, out)
    old = json.loads((out / "config.json").read_text())
    for name in ("ffn_activation", "auto_map", "model_type", "architectures"):
        old.pop(name, None)
    (out / "config.json").write_text(json.dumps(old | config))
    (out / "modeling_turbosparse.py").unlink()
    tensors, rng = load_file(out / "model.safetensors"), np.random.default_rng(5)
    width, neurons = old["hidden_size"], old["intermediate_size"]
    for layer in range(2):
        for expert in range(experts):
            name = prefix(layer, expert)
            tensors[f"{name}.fc1.weight"] = rng.normal(size=(RANK, width)).astype(np.float32)
            tensors[f"{name}.fc2.weight"] = rng.normal(size=(neurons, RANK)).astype(np.float32)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture
def bamboo(make_sparse: Make, tmp_path: Path) -> Path:
    """Like TurboSparse-Mistral; its vocabulary has more rows than its tokenizer has tokens."""
    config = {"architectures": ["BambooForCausalLM"], "model_type": "bamboo", "hidden_act": "relu"}
    model = make_sparse(seed=2, vocab_size=4160)
    return released(model, tmp_path / "bamboo", config, lambda layer, _: f"model.layers.{layer}.mlp.predictor", 1)


@pytest.mark.parametrize("target", ["sparse", "powerinfer"])
def test_turbosparse_mistral(bamboo: Path, target: str, tmp_path: Path):
    checkpoint = open_checkpoint(bamboo)
    assert (checkpoint.spec.activation, checkpoint.has_predictors) == ("drelu", True)
    out = tmp_path / "m.gguf"
    assert export_unverified(ExportConfig(model=bamboo, out=out, target=target)).predictors == 2
    verify(VerifyConfig(model=bamboo, file=out)).require()
    file, tensors = GgufFile(out), load_file(bamboo / "model.safetensors")
    assert file.metadata["tokenizer.ggml.tokens"][4096:4098] == ["[PAD4096]", "[PAD4097]"]
    rng = np.random.default_rng(6)
    x_TD = rng.normal(size=(20, 64)).astype(np.float32)
    norm_D = tensors["model.layers.1.post_attention_layernorm.weight"]
    name = "model.layers.1.mlp.predictor"
    wanted_TF = np.maximum(x_TD @ tensors[f"{name}.fc1.weight"].T, 0) @ tensors[f"{name}.fc2.weight"].T
    fc1_RD, fc2_FR = (file.tensors[f"blk.1.{part}.weight"].to_float32() for part in ("fc1", "fc2"))
    seen_TD = x_TD if target == "powerinfer" else x_TD * norm_D
    found_TF = np.maximum(seen_TD @ fc1_RD.T, 0) @ fc2_FR.T
    np.testing.assert_allclose(found_TF, wanted_TF, atol=0.1)


def test_turbosparse_mixtral(make_sparse: Make, tmp_path: Path):
    model = released(
        make_sparse("mixtral", seed=2), tmp_path / "moe", {"model_type": "turbosparse_mixtral"},
        lambda layer, expert: f"model.layers.{layer}.block_sparse_moe.experts.{expert}.predictor", 4,
    )  # fmt: skip
    out = tmp_path / "m.gguf"
    assert export_unverified(ExportConfig(model=model, out=out)).predictors == 8
    verify(VerifyConfig(model=model, file=out)).require()
    assert GgufFile(out).tensors["blk.1.fc2_exps.weight"].shape == (4, 128, RANK)


@pytest.mark.parametrize("target", ["sparse", "powerinfer"])
def test_powerinfers_own_predictor_folder(target: str, drelu: Path, make_predictors: Make, tmp_path: Path):
    ours = make_predictors(drelu)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text(json.dumps({"sparse_threshold": 0.0}))
    checkpoint = open_checkpoint(drelu)
    for layer, (predictor,) in enumerate(load_predictors(ours).ffns):
        before_norm = predictor.folded(checkpoint.array(Place("ffn_norm", layer)))
        state = {"fc1.weight": before_norm.fc1_RD, "fc2.weight": before_norm.fc2_FR}
        torch.save({name: torch.from_numpy(matrix) for name, matrix in state.items()}, theirs / f"model_{layer}.pt")
    files = []
    for name, folder in {"ours": ours, "theirs": theirs}.items():
        out = tmp_path / f"{name}.gguf"
        export_unverified(ExportConfig(model=drelu, out=out, target=target, predictors=folder))
        files.append(GgufFile(out))
    for layer in range(2):
        for part in ("fc1", "fc2"):
            one, other = (file.tensors[f"blk.{layer}.{part}.weight"].to_float32() for file in files)
            assert np.array_equal(one, other)
    verify(VerifyConfig(model=drelu, file=tmp_path / "theirs.gguf", predictors=theirs)).require()


def test_powerinfers_predictors_of_another_model_are_refused(drelu: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"sparse_threshold": 0.0}))
    for layer in range(2):
        state = {"fc1.weight": torch.zeros(8, 32), "fc2.weight": torch.zeros(128, 8)}
        torch.save(state, tmp_path / f"model_{layer}.pt")
    with pytest.raises(TsconvertError) as error:
        PredictorSource(open_checkpoint(drelu), tmp_path, with_relu=False)
    assert str(error.value) == (
        f"{tmp_path}: the predictor of layer 0, expert 0 has shapes [8, 32] and [128, 8]; this model needs [R, 64] and"
        " [1024, R], train it again"
    )


def test_the_norm_that_predictors_are_moved_behind_has_its_offset(make_family: Make, make_predictors: Make):
    checkpoint = open_checkpoint(make_family("gemma"))
    source = PredictorSource(checkpoint, make_predictors(checkpoint.folder), with_relu=False)
    x_D = np.random.default_rng(3).normal(size=64).astype(np.float32)
    norm_D = 1 + checkpoint.array(Place("ffn_norm", 1))
    normed, before = source.normed(1, 0), source.before_norm(1, 0)
    np.testing.assert_allclose(before.logits(x_D[None]), normed.logits((norm_D * x_D)[None]), rtol=1e-4, atol=1e-4)
