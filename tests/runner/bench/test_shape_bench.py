"""`bench --shape`: what is planted is what fires, and the whole model follows from a few layers."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.runner.bench.planted_model import Shape, write_planted
from tsconvert.runner.bench.shape_bench import bench_shape
from tsconvert.runner.config import ShapeConfig
from tsconvert.runner.model import load

CONFIG = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 256, "intermediate_size": 1024,
    "num_hidden_layers": 8, "vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2,
    "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
MOE = CONFIG | {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2
}  # fmt: skip


def config(tmp_path: Path, content: dict) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize(("experts", "share"), [(0, None), (4, None), (4, 0.5)])
def test_as_many_fire_and_are_predicted_as_were_planted(
    tmp_path: Path, type_name: str, experts: int, share: float | None
):
    shape = Shape(
        layers=2, width=256, neurons=1024, heads=4, kv_heads=2, head_dim=64, vocab=512, experts=experts, rank=32,
        experts_per_token=2 if experts else 0, type_name=type_name, predictor_type=type_name, gate_open=0.3,
        firing=0.1, predicted=0.15, attention_share=share,
    )  # fmt: skip
    file = write_planted(tmp_path / "planted.gguf", "sparse", shape)
    with load(file, threads=1, mode="predicted", context=64) as model:
        model.audit = True
        model.feed(np.random.default_rng(0).integers(300, 512, 48).tolist())
        found = model.density
    assert found.fired.mean() == pytest.approx(0.1, abs=0.02)
    assert found.predicted.mean() == pytest.approx(0.15, abs=0.02)
    assert found.missed.mean() < 0.01
    assert found.attended.mean() == pytest.approx(share or 0, abs=0.02)


@pytest.mark.parametrize("content", [CONFIG, MOE])
def test_the_whole_model_follows_from_a_few_layers(tmp_path: Path, content: dict):
    report = bench_shape(
        ShapeConfig(model=config(tmp_path, content), density=0.1, rank=32, generate=4, repetitions=2, threads=1)
    )
    assert (report.shape.layers, report.layers_measured) == (8, (4, 8))
    dense, exact, predicted = report.rows
    assert [row.mode for row in report.rows] == ["dense", "exact", "predicted"]
    ffn = 3 * 1024 * 256 * (2 if "num_local_experts" in content else 1)
    router = 4 * 256 * 4 if "num_local_experts" in content else 0
    attention = (256 + 128 + 128 + 256) * 256
    norms = 2 * 256 * 4
    head = 512 * 256 * 18 // 32 + 256 * 4
    assert dense.bytes_per_token == 8 * ((ffn + attention) * 18 // 32 + norms + router) + head
    assert dense.bytes_per_token > exact.bytes_per_token > predicted.bytes_per_token
    assert all(row.tokens_per_s > 0 for row in report.rows)
    assert exact.fired == pytest.approx(0.1, abs=0.03)


def test_more_layers_than_are_measured(tmp_path: Path):
    deep = config(tmp_path, CONFIG | {"num_hidden_layers": 40})
    found = CliRunner().invoke(main, ["bench", "--shape", deep, "-n", "2", "-r", "1", "-t", "1", "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["shape"]["layers"], report["layers_measured"]) == (40, [4, 8])


def test_what_cannot_be_measured_is_refused(tmp_path: Path):
    narrow = config(tmp_path, CONFIG | {"hidden_size": 128})
    with pytest.raises(TsconvertError, match=r"128 wide with 1024 neurons; activity is planted in models of at least"):
        bench_shape(ShapeConfig(model=narrow))
    with pytest.raises(TsconvertError, match=r"^--density 0: it must be above 0 and at most 1$"):
        ShapeConfig(model=narrow, density=0.0)
    with pytest.raises(TsconvertError, match=r"^--predicted 0.05 with --density 0.1: predictors name at least"):
        ShapeConfig(model=narrow, predicted=0.05)
    for arguments in (["bench"], ["bench", str(tmp_path / "x.gguf"), "--shape", narrow]):
        found = CliRunner().invoke(main, arguments)
        assert found.exit_code == 2
        assert "give a GGUF FILE, or --shape MODEL_OR_CONFIG" in found.output
