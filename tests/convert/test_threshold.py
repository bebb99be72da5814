"""The threshold shift: set by energy, and computed alike by transformers, the sweep and the runner."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.convert.report import RelufyReport
from tsconvert.embedded import text
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.modeling_turbosparse import activate
from tsconvert.model.named_config import read_model_config
from tsconvert.model.sweep import Stream
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.text.sources import Source

HELD = (Source(path=str(text("heldout.txt"))),)


@pytest.fixture(scope="module", params=["drelu", "reglu"])
def shifted(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RelufyReport]:
    out = tmp_path_factory.mktemp("shift") / "sparse"
    training = LocalRecovery(steps=20, batch_tokens=512)
    run = RelufyConfig(model="tiny-mistral", out=out, tokens=8192, training=training, activation=request.param)
    return out, relufy(replace(run, shift=0.99))


def test_small_activations_are_left_out(shifted):
    out, report = shifted
    found = report.shift
    assert found.density < 0.85 * found.density_before
    assert found.perplexity < 1.05 * found.perplexity_before
    assert read_model_config(str(out))[1].thresholds == found.thresholds
    assert all(threshold > 0 for threshold in found.thresholds)
    kept = json.loads((out / "tsconvert.json").read_text())["report"]["shift"]
    assert kept["thresholds"] == list(found.thresholds)


@torch.no_grad()
def test_transformers_computes_what_the_sweep_does(shifted):
    out = shifted[0]
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32)
    ids = torch.randint(3, 4096, (1, 32), generator=torch.Generator().manual_seed(0))
    stream = Stream(Checkpoint(out), ids)
    for index in range(3):
        layer = stream.layer(index)
        stream.attend(layer)
        stream.feed_forward(layer)
    assert torch.allclose(model(ids).logits[0], next(stream.logits(slice(None))), atol=1e-4)


def test_the_runner_computes_what_the_checkpoint_does(shifted, tmp_path: Path):
    out, file = shifted[0], tmp_path / "sparse.gguf"
    export_unverified(ExportConfig(model=str(out), out=file, type_name="F16"))
    scored = EvalConfig(model=str(out), data=HELD, tokens=1024)
    ours = evaluate(scored)
    for mode in ("exact", "dense"):
        theirs = evaluate(replace(scored, model=str(file), mode=mode))
        assert theirs.perplexity == pytest.approx(ours.perplexity, rel=2e-3)
        assert theirs.density == pytest.approx(ours.density, rel=0.02)


def test_what_is_up_to_the_threshold_is_zero():
    gate, up = torch.tensor([0.1, 0.2, 3.0, 3.0, -1.0]), torch.tensor([3.0, 3.0, 0.2, 2.0, 2.0])
    assert activate(gate, up, "drelu", 0.2).tolist() == [0, 0, 0, 6.0, 0]
    assert activate(gate, up, "reglu", 0.2).tolist() == pytest.approx([0, 0, 0.6, 6.0, 0])


def test_thresholds_that_are_none(shifted, tmp_path: Path):
    config = json.loads((shifted[0] / "config.json").read_text())
    for values, sentence in (([0.1], "one of at least 0 for each of its 3"), ("x", "must be a list of numbers, one a")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"ffn_thresholds": values}))
        with pytest.raises(TsconvertError, match=sentence):
            read_model_config(str(tmp_path))
    with pytest.raises(TsconvertError, match=r"--shift 99: it must lie between 0 and 1, as in --shift 0.995"):
        RelufyConfig(model="tiny-mistral", out=tmp_path / "o", shift=99)  # before any work
