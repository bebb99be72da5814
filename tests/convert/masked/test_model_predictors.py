"""Predictors in a whole model that is trained: slopes, loss, and all from dense model to folder."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.config.masked import JointConfig
from tsconvert.convert.full.activations import ActivationMonitor
from tsconvert.convert.masked.model_predictors import FFNPredictors, ModelPredictors, _Mask
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.whole_model import sparse_model
from tsconvert.predictors.config import Training
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.training.price import GAIN


def test_the_masks_slopes():
    h = torch.tensor([[2.0, 3.0], [4.0, 5.0]], requires_grad=True)
    z = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)
    masked = torch.tensor([True, False])
    used = _Mask.apply(h, z, masked)
    assert used.tolist() == [[2, 0], [4, 5]]
    (used * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert h.grad.tolist() == [[1, 0], [100, 1000]]
    slope = torch.sigmoid(torch.tensor(0.5)) * torch.sigmoid(torch.tensor(-0.5))
    assert z.grad.tolist() == [[pytest.approx(2 * slope.item()), pytest.approx(30 * slope.item())], [0, 0]]


def layer_of(rank: int = 4, width: int = 8, neurons: int = 16) -> FFNPredictors:
    random = np.random.default_rng(0)
    weights = [random.standard_normal(shape).astype(np.float32) for shape in ((rank, width), (neurons, rank))]
    return FFNPredictors([Predictor(fc1_RD=weights[0], fc2_FR=weights[1]), None], 0.98, "F16")


def test_the_own_loss_is_least_where_the_price_says():
    layer = layer_of()
    h = torch.zeros(1000, 16)
    h[:, 0], h[:500, 1] = 1.0, 1.0
    layer.loss(torch.zeros(1000, 16), h, torch.ones(16), 0)
    layer.price_E[0] = 2.0
    z = torch.zeros(16, requires_grad=True)
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        layer.loss(z.expand(1000, 16), h, torch.ones(16), 0).backward()
        optimizer.step()
    weight = (h * (0.5 / h.sum(1, keepdim=True) + 0.5 / 1.5)).mean(0)
    weight = weight / weight.mean() + 0.1 * (h != 0).float().mean(0)
    expected = (weight / (weight + 2.0))[:2]
    assert torch.allclose(z.sigmoid()[:2], expected, atol=0.02)
    assert (z[2:] < -3).all()


def test_the_price_falls_while_too_much_energy_is_lost():
    layer = layer_of()
    layer.price_E[0] = 1.0
    layer.steer(0, kept=0.9)
    assert float(layer.price_E[0]) == pytest.approx(math.exp(-GAIN))
    layer.lost_E[0] = -1.0
    layer.steer(0, kept=0.999)
    assert float(layer.price_E[0]) > math.exp(-GAIN)


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("loop")
    config = RelufyConfig(
        model="tiny-mistral", out=folder / "sparse", recover="full", tokens=8192, context=128,
        training=LocalRecovery(steps=20, batch_tokens=512, target_sparsity=0.85),
        full=FullRecovery(tokens=16_384, batch_tokens=1024, micro_tokens=512, evaluations=2),
    )  # fmt: skip
    joint = JointConfig(out=folder / "predictors", rank=32, training=Training(steps=50))
    return config, relufy(replace(config, predictors=joint))


def test_from_a_dense_model_to_a_sparse_one_with_predictors(recovered):
    config, report = recovered
    first, last = report.full.evaluations[0], report.full.evaluations[-1]
    assert last.predicted_perplexity < first.predicted_perplexity
    assert report.predictors.perplexity_exact == pytest.approx(report.perplexity, rel=5e-3)
    assert report.predictors.perplexity_predicted < 1.01 * last.predicted_perplexity  # its thresholds were set anew
    stored = load_predictors(config.out.parent / "predictors", Checkpoint(config.out).fingerprint)
    assert len(stored.ffns) == 3
    assert sorted(path.name for path in config.out.parent.iterdir()) == ["predictors", "sparse"]


def test_a_sparse_model_needs_its_predictors(recovered, tmp_path: Path):
    config, _ = recovered
    joint = JointConfig(out=tmp_path / "p")
    again = RelufyConfig(
        model=str(config.out), teacher="tiny-mistral", out=tmp_path / "o", recover="full", predictors=joint
    )
    with pytest.raises(TsconvertError) as caught:
        relufy(again)
    assert str(caught.value) == f"{config.out}: is sparse already; give its predictors with --from-predictors"
    dense = replace(again, model="tiny-mistral", predictors=replace(joint, start=tmp_path / "q"))
    with pytest.raises(TsconvertError) as caught:
        relufy(dense)
    assert str(caught.value) == (
        "tiny-mistral: is dense, and its predictors are made along the way; leave --from-predictors out"
    )


@pytest.mark.parametrize(("share", "sequences"), [(0.9, 2), (0.9, 1), (0.9, 3), (0.5, 1), (0.25, 2), (1.0, 2)])
def test_of_small_batches_the_share_is_masked(recovered, share: float, sequences: int):
    config, _ = recovered
    folder = config.out.parent / "predictors"
    predictors = ModelPredictors(folder, JointConfig(out=folder, masked_share=share))
    found = [predictors.to_mask(sequences) for _ in range(20)]
    assert sum(found) == round(20 * sequences * share)
    assert max(found) <= sequences
    assert max(found) - min(found) <= 1  # spread over the batches


def test_a_killed_run_masks_the_sequences_that_a_whole_one_masks(tmp_path: Path, monkeypatch):
    run = RelufyConfig(
        model="tiny-mistral", out=tmp_path / "whole", recover="full", tokens=2048, context=128,
        predictors=JointConfig(out=tmp_path / "whole-p", rank=16, training=Training(steps=4)),
        training=LocalRecovery(steps=4, batch_tokens=256, target_sparsity=0.85),
        full=FullRecovery(tokens=1024, batch_tokens=256, micro_tokens=128, evaluations=4),
    )  # fmt: skip
    masked, last, real = [], 8, ModelPredictors.to_mask

    def noted(self: ModelPredictors, sequences: int) -> int:
        if len(masked) == last:
            raise KeyboardInterrupt
        masked.append(real(self, sequences))
        return masked[-1]

    monkeypatch.setattr(ModelPredictors, "to_mask", noted)
    relufy(run)
    assert masked == [1, 1, 1, 1, 0, 1, 1, 1]
    masked, last = [], 5
    killed = replace(run, out=tmp_path / "killed", predictors=replace(run.predictors, out=tmp_path / "killed-p"))
    with pytest.raises(KeyboardInterrupt):
        relufy(killed)
    masked, last = [], 4
    relufy(replace(killed, resume=True))
    assert masked == [0, 1, 1, 1]  # its third step was begun before


def test_what_is_outside_the_mask_costs_more(recovered):
    config, _ = recovered
    model = sparse_model(Checkpoint(config.out))
    folder = config.out.parent / "predictors"
    predictors = ModelPredictors(folder, JointConfig(out=folder))
    ids = torch.randint(3, 4096, (2, 32))
    monitor = ActivationMonitor(model, predictors)
    found = []
    for outside in (1.0, 4.0):
        monitor.outside = outside
        monitor.begin(ids.numel(), learns=True)
        model(ids)
        monitor.end()
        found.append([float(torch.stack(parts).sum().detach()) for parts in monitor.prices])
    assert all(plain < dear < 4 * plain for plain, dear in zip(*found, strict=True))
    assert len(monitor.losses) == 3
