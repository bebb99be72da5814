"""Predictors that are trained with each layer of local recovery."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.config.masked import JointConfig
from tsconvert.convert.local import sweep
from tsconvert.convert.masked.layer_predictors import JointPredictors
from tsconvert.convert.relufy import relufy
from tsconvert.convert.report import RelufyReport
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.train import train_predictors
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sources import Source

Make = Callable[..., Path]
QUICK = Training(steps=40, batch_tokens=128, autocast=False)
SHORT = LocalRecovery(steps=30, batch_tokens=256, autocast=False, target_sparsity=0.8)


def asked(model: Path | str, folder: Path, **fields: object) -> RelufyConfig:
    settings = {"tokens": 8192, "context": 128, "training": SHORT} | fields
    return RelufyConfig(model=str(model), out=folder / "model", **settings)


def trained_along(config: RelufyConfig, **fields: object) -> RelufyReport:
    joint = JointConfig(out=config.out.with_name("predictors"), rank=16, training=QUICK, **fields)
    return relufy(replace(config, predictors=joint))


def files(folder: Path) -> dict[str, bytes]:
    names = ("model/model.safetensors", "predictors/layer-00000.safetensors", "predictors/config.json")
    return {name: (folder / name).read_bytes() for name in names}


def test_the_model_learns_to_live_with_the_mask(tmp_path: Path):
    """Against the same training without a mask, and predictors trained afterwards that name as many neurons."""
    how = Training(steps=100, batch_tokens=256)
    longer = replace(SHORT, steps=40)
    config = asked("tiny-mistral", tmp_path, training=longer)
    joint = JointConfig(out=tmp_path / "predictors", rank=32, training=how, target_energy=0.95)
    along = relufy(replace(config, predictors=joint)).predictors
    assert along is not None
    after_config = asked("tiny-mistral", tmp_path / "after", training=longer)
    relufy(after_config)
    after = train_predictors(
        PredictorConfig(
            model=str(after_config.out), tokens=8192, context=128, rank=32, training=how, target_energy=0.95
        )
    )
    assert along.mean("predicted_density") < after.mean("predicted_density")
    lost = [found.perplexity_predicted / found.perplexity_exact - 1 for found in (along, after)]
    assert lost[0] < 0.8 * lost[1]


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_what_is_reported_is_what_transformers_computes_with_the_mask(
    make_checkpoint: Make, tmp_path: Path, text: Source, family: str
):
    config = asked(make_checkpoint(family), tmp_path, data=(text,), context=64)
    report = trained_along(config)
    assert report.predictors is not None
    predictors = load_predictors(tmp_path / "predictors")
    assert predictors.model_fingerprint == open_checkpoint(config.out).fingerprint
    assert len(predictors.ffns) == 2
    assert all(p is not None and p.threshold == 0 and p.rank == 16 for layer in predictors.ffns for p in layer)
    assert not list(config.out.glob("*.kept"))
    rows = torch.from_numpy(calibration_rows(Checkpoint(config.out), (text,), tokens=8192, context=64))
    rows = rows[-(len(rows) // 16) :]
    model = AutoModelForCausalLM.from_pretrained(config.out, trust_remote_code=True).eval()
    with torch.no_grad():
        exact = float(model(input_ids=rows, labels=rows).loss.exp())
    assert report.predictors.perplexity_exact == pytest.approx(exact, rel=1e-4)
    if family == "mixtral":
        assert [len(layer) for layer in predictors.ffns] == [4, 4]
        return
    for index, layer in enumerate(model.model.layers):
        _masked(layer.mlp, predictors.ffns[index][0])
    with torch.no_grad():
        masked = float(model(input_ids=rows, labels=rows).loss.exp())
    assert report.predictors.perplexity_predicted == pytest.approx(masked, rel=1e-3)
    assert report.perplexity == pytest.approx(report.predictors.perplexity_predicted, rel=1e-6)


def _masked(mlp: torch.nn.Module, predictor) -> None:
    seen: list[torch.Tensor] = []
    mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0]))

    def mask(_, h):
        chosen = torch.from_numpy(predictor.logits(seen.pop().flatten(0, -2).numpy()) >= 0)
        return (h[0] * chosen.view(h[0].shape),)

    mlp.down_proj.register_forward_pre_hook(mask)


def test_a_resumed_run_ends_in_the_same_bytes(dense: Path, tmp_path: Path, monkeypatch):
    trained_along(asked(dense, tmp_path / "whole"))
    real = sweep.recover_layer

    def dies(layer, *rest):
        if layer.index == 1:
            raise KeyboardInterrupt
        return real(layer, *rest)

    config = asked(dense, tmp_path / "resumed")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweep, "recover_layer", dies)
        trained_along(config)
    assert not (tmp_path / "resumed" / "predictors").exists()
    trained_along(replace(config, resume=True))
    assert files(tmp_path / "resumed") == files(tmp_path / "whole")


def test_a_run_killed_between_its_two_outputs_is_resumed(dense: Path, tmp_path: Path, monkeypatch):
    def dies(self, folder):
        write(self, folder)
        raise KeyboardInterrupt

    write, config = JointPredictors.write, asked(dense, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(JointPredictors, "write", dies)
        trained_along(config)
    assert (tmp_path / "predictors").is_dir()
    assert not config.out.exists()
    trained_along(replace(config, resume=True))
    made_for = load_predictors(tmp_path / "predictors").model_fingerprint
    assert made_for == open_checkpoint(config.out).fingerprint


def test_refusals(dense: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        trained_along(asked(dense, tmp_path, recover="none"))
    assert str(caught.value) == (
        "--predictors with --recover none: they are trained along with local or full recovery; choose one of these, or"
        " train them afterwards with `tsconvert predictors`"
    )
    (tmp_path / "predictors").mkdir()
    with pytest.raises(TsconvertError, match="exists already; choose another --out"):
        trained_along(asked(dense, tmp_path))
