"""The threshold that follows a density, and the price of firing."""

import pytest
import torch

from tsconvert.convert.penalty import DensityThreshold, SparsityPenalty, bend, count, quantile


def test_the_threshold_brings_the_density_down_a_ramp():
    generator = torch.Generator().manual_seed(0)
    threshold = DensityThreshold(0.9)
    densities = []
    for step in range(100):
        factor_TF = torch.randn(64, 512, generator=generator)
        value = threshold.follow(step, step / 100, factor_TF)
        densities.append(float((factor_TF > value).float().mean()))
    assert densities[0] == pytest.approx(0.5, abs=0.01)
    assert densities[0] > densities[20] > densities[40] > densities[59]
    assert densities[70:] == pytest.approx([0.1] * 30, abs=0.01)


def test_a_model_as_sparse_as_asked_for_stays_so_from_the_first_step():
    generator = torch.Generator().manual_seed(0)
    threshold = DensityThreshold(0.9, value=1.2816)  # the normal distribution's quantile
    for step in range(10):
        value = threshold.follow(step, step / 100, torch.randn(64, 512, generator=generator))
        assert value == pytest.approx(1.2816, abs=0.02)


def test_without_tokens_the_threshold_stays():
    assert DensityThreshold(0.9, value=0.5).follow(0, 0.0, torch.empty(0, 8)) == 0.5


def test_firing_costs_the_same_however_strongly():
    size_TF = torch.tensor([[0.0, 1e-3, 1.0, 100.0]])
    assert count(size_TF, 1e-6).tolist() == [pytest.approx([0.0, 1.0, 1.0, 1.0], abs=1e-2)]
    assert bend(size_TF) == pytest.approx(0.5 * (101.001 / 3))
    penalty = SparsityPenalty(0.9, counts=True)
    assert torch.equal(penalty.price(size_TF), count(size_TF, bend(size_TF)))
    assert torch.equal(SparsityPenalty(0.9).price(size_TF), size_TF)


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.88, 1.0])
def test_a_quantile_is_torchs_own(rows: int, share: float):
    factor_TF = torch.rand(rows, 3, generator=torch.Generator().manual_seed(rows))
    assert quantile(factor_TF, share) == float(torch.quantile(factor_TF, share))
