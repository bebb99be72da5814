"""The arithmetic of --dry-run against what a run really takes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from memory import watched
from shapes import write_checkpoint

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.cost import flops
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.tensor_names import Place, model_places, shape_of

SHAPE = {"layers": 2, "heads": 8, "kv_heads": 2, "vocab": 4096}
CASES = {
    "trained": (SHAPE | {"width": 1024, "neurons": 4096}, ["--steps", "2", "--target-sparsity", "0.8"]),
    "trained in float32": (SHAPE | {"width": 1024, "neurons": 4096}, ["--steps", "2", "--precision", "f32"]),
    "aligned": (SHAPE | {"width": 2048, "neurons": 8192}, ["--recover", "none"]),
    "experts": (SHAPE | {"width": 512, "neurons": 2048, "experts": 4}, ["--steps", "2"]),
    "copied": (SHAPE | {"width": 1024, "neurons": 4096}, ["--recover", "none", "--no-align"]),
}
SLOW = ("trained", "trained in float32", "aligned", "experts")


@pytest.mark.parametrize("case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES])
def test_the_memory_reckoned_is_the_memory_taken(tmp_path: Path, case: str):
    shape, options = CASES[case]
    model = write_checkpoint(tmp_path / "model", **shape)
    command = [sys.executable, "-m", "tsconvert", "relufy", str(model), "--out", str(tmp_path / "out"), "--json"]
    command += options if "--no-align" in options else ["--tokens", "2K", *options]
    reckoned = json.loads(watched([*command, "--dry-run"]).output)["cost"]["memory_bytes"]
    assert not (tmp_path / "out").exists()
    assert reckoned == pytest.approx(watched(command).peak_anonymous_bytes, rel=0.25)


def test_the_weights_of_a_layer():
    for name in ("tiny-mistral", "tiny-mixtral"):
        spec = open_checkpoint(name).spec
        sizes = {place: shape_of(spec, place) for place in model_places(spec) if place.layer == 0}
        matrices = {place: shape for place, shape in sizes.items() if len(shape) == 2 and place.role != "router"}
        ffn = sum(rows * columns for place, (rows, columns) in matrices.items() if place.role.startswith("ffn"))
        attention = sum(rows * columns for rows, columns in matrices.values()) - ffn
        assert spec.layer_weights == (attention, ffn)
        assert matrices[Place("attn_q", 0)] == (spec.heads * spec.head_dim, spec.width)


def test_training_is_six_operations_for_each_weight_and_token():
    spec = open_checkpoint("tiny-mistral").spec
    config = RelufyConfig(model="tiny-mistral", out=Path("unused"))
    once, twice = (replace(config, training=replace(config.training, steps=steps)) for steps in (100, 200))
    trained = sum(spec.layer_weights) - 2 * spec.width * (spec.kv_heads + spec.heads) * spec.head_dim
    trained += spec.width * spec.heads * spec.head_dim
    assert flops(spec, twice) - flops(spec, once) == pytest.approx(
        6 * 100 * config.training.batch_tokens * trained * spec.layers
    )
