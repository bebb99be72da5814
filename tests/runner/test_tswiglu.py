"""SwiGLU with thresholds: the runner computes what transformers computes, and leaves out the rows that it can."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

Make = Callable[..., Path]
UP, LEAST = [0.2, 0.3, 0.0], [0.04, 0.0, 0.06]


CASES = [("mistral", False), ("mixtral", False), ("mistral", True), ("mixtral", True), ("gemma3_text", True)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-scaled".join([case[0], ""][: 1 + case[1]]))
def folder(
    request: pytest.FixtureRequest, make_checkpoint: Make, make_family: Make, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model of SwiGLU (Gemma 3: GeGLU) with thresholds, and a scale for each neuron's up."""
    kind, scaled = request.param
    out = tmp_path_factory.mktemp("tswiglu") / "model"
    gemma = kind == "gemma3_text"
    dense = make_family(kind) if gemma else make_checkpoint(kind, num_hidden_layers=3)
    relufy(RelufyConfig(model=str(dense), out=out, activation="reglu", recover="none", align=False))
    config = json.loads((out / "config.json").read_text())
    layers = range(config["num_hidden_layers"])
    config["ffn_activation"] = "tgeglu" if gemma else "tswiglu"
    config["ffn_thresholds"], config["ffn_up_thresholds"] = ([of[i % 3] for i in layers] for of in (LEAST, UP))
    if scaled:
        config["ffn_up_scaled"] = True
        state = load_file(out / "model.safetensors")
        neurons, random = config["intermediate_size"], torch.Generator().manual_seed(3)
        for layer in layers:
            name, shape = ("mlp", [neurons]) if kind != "mixtral" else ("block_sparse_moe.experts", [4, neurons])
            assert kind != "mixtral" or config["num_local_experts"] == 4
            scale = 3 * torch.rand(shape, generator=random)
            scale[..., :3] = 0
            state[f"model.layers.{layer}.{name}.up_scale"] = scale
        save_file(state, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a file."""
    out = tmp_path_factory.mktemp("file") / "model.gguf"
    export_unverified(ExportConfig(model=str(folder), out=out, type_name="F32"))
    return out


def reference(folder: Path, ids: list[int]) -> np.ndarray:
    """transformers' logits [T, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_logits_are_transformers(folder: Path, file: Path, mode: str):
    ids = np.random.default_rng(0).integers(5, 90, 40).tolist()
    wanted_TV = reference(folder, ids)
    for threads in (1, 2):
        with load(file, mode=mode, threads=threads, context=64, cache_type="F32") as model:
            block_TV = model.logits(ids)
            model.reset()
            single_TV = np.stack([model.feed([token]) for token in ids])
    spread = wanted_TV.std()
    assert np.abs(block_TV - wanted_TV).max() < 1e-4 * spread
    assert np.abs(single_TV - wanted_TV).max() < 1e-4 * spread


def test_exact_mode_reads_what_passes(folder: Path, file: Path):
    ids = np.random.default_rng(1).integers(5, 90, 24).tolist()
    found = {}
    with load(file, mode="exact", threads=2, context=64) as model:
        model.feed(ids)
        found["block"] = model.density
        model.reset()
        model.reset_density()
        for token in ids:
            model.feed([token])
        found["single"] = model.density
    for density in found.values():
        assert (density.up == 1).all()
        assert (density.gate[:2] < 0.95).all()
        assert density.gate[2] == 1
        assert (density.down == density.fired).all()
        assert density.fired[0] < density.gate[0]
    assert np.allclose(found["block"].fired, found["single"].fired, atol=0.01)
