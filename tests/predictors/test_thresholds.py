from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.sweep import sweep
from tsconvert.predictors.calibration.ffn import FFNReport
from tsconvert.predictors.calibration.model import Calibrated, _best, calibrate_model
from tsconvert.predictors.calibration.predicted_mode import ModeComparison
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.cost import Bits
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.train import train_predictors
from tsconvert.text.packing import calibration_rows


def test_the_thresholds_follow_from_the_loss_asked_for(tmp_path: Path):
    sparse = tmp_path / "sparse"
    relufy(RelufyConfig(model="tiny-mistral", out=sparse, recover="none", align=False))
    training = Training(steps=60, batch_tokens=256)
    asked = PredictorConfig(
        model=str(sparse), out=tmp_path / "p", tokens=4096, context=128, rank=16, training=training, target_energy=0.8
    )
    train_predictors(asked)
    checkpoint = Checkpoint(sparse)
    layers = [[replace(p, threshold=0.0) for p in row] for row in load_predictors(asked.out).ffns]
    rows_NS = torch.from_numpy(calibration_rows(checkpoint, (), tokens=1024, context=128, seed=1))
    exact = sweep(checkpoint, rows_NS, [])
    strict, loose = (
        calibrate_model(layers.__getitem__, checkpoint, exact, slice(None), 0.9, most, Bits()) for most in (0.03, 5.0)
    )
    assert strict.loss <= 0.03 < loose.loss
    assert loose.density < strict.density
    assert all(t < 0 for row in strict.thresholds for t in row)


def way(loss: float, density: float) -> Calibrated:
    effect = ModeComparison(perplexity_exact=10, perplexity_predicted=10 * (1 + loss), kl_divergence=0, same_top=1)
    report = FFNReport(layer=0, expert=0, rank=8, predicted_density=density)
    return Calibrated(thresholds=[], reports=(report,), effect=effect)


@pytest.mark.parametrize(
    ("ways", "best", "said"),
    [
        ([(0.01, 0.20), (0.019, 0.195)], 0, ""),  # within the loss, and PowerInfer can run it
        ([(0.01, 0.20), (0.019, 0.15)], 1, ""),
        ([(0.03, 0.15), (0.04, 0.14), (0.015, 0.18)], 2, ""),
        ([(0.03, 0.15), (0.04, 0.14), (0.025, 0.3)], 2, "costs 2.5% of the perplexity at its best, more than the 2.0%"),
    ],
)
def test_the_fewest_neurons_within_the_loss(ways, best: int, said: str, capsys: pytest.CaptureFixture[str]):
    made = [way(*each) for each in ways]
    assert _best(made, 0.02) is made[best]
    err = capsys.readouterr().err
    assert said in err
    assert bool(said) == bool(err)


def test_predictors_with_a_loss_asked_for_keep_to_it_in_the_folder(tmp_path: Path):
    sparse = tmp_path / "sparse"
    relufy(RelufyConfig(model="tiny-mistral", out=sparse, recover="none", align=False))
    training = Training(steps=60, batch_tokens=256)
    asked = PredictorConfig(
        model=str(sparse), out=tmp_path / "p", tokens=4096, context=128, rank=16, training=training, target_energy=0.8,
        max_loss=0.1,
    )  # fmt: skip
    report = train_predictors(asked)
    assert 1 < report.perplexity_predicted / report.perplexity_exact <= 1.1
    stored = [p.threshold for row in load_predictors(asked.out).ffns for p in row]
    assert stored == [ffn.threshold for ffn in report.ffns]
    assert report.mean("energy") > 0.8
