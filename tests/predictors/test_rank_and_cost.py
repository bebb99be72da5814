import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner

from tsconvert.cli import main
from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.model.sweep import Stream
from tsconvert.predictors.calibration.ffn import calibrate, judge
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.cost import Bits, Rates, default_rank, exact_bytes, low_rank_bytes, predicted_bytes
from tsconvert.predictors.estimate import estimate_predictors
from tsconvert.predictors.folder import PredictorSet, load_predictors, save_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.profile.file import hot_set, hot_share, overlap
from tsconvert.predictors.profile.statistics import EnergyHistogram
from tsconvert.predictors.report import FFNReport
from tsconvert.predictors.torch_predictor import as_stored
from tsconvert.predictors.train import train_predictors
from tsconvert.predictors.training.layer_candidates import layer_ffns
from tsconvert.predictors.training.rank import (
    Choice,
    choices,
    highest_rank,
    ranks_to_try,
    spend,
    try_ranks,
)
from tsconvert.predictors.training.trainer import PredictorTrainer, _gradient
from tsconvert.quant.types.encoding import quantize
from tsconvert.text.sources import Source

QUICK = Training(steps=30, batch_tokens=256)


def test_the_rank_follows_the_models_size():
    spec = open_checkpoint("tiny-mistral").spec
    assert default_rank(spec) == 32
    wide = replace(spec, layers=32, width=4096, neurons=14336, heads=32, head_dim=128, kv_heads=8, vocab=32000)
    assert default_rank(wide) == 480
    assert 0.036 < 480 * 32 * (4096 + 14336) / wide.parameters < 0.04


def test_the_cost_model_counts_rows():
    rates = Rates(gate=0.5, fired=0.25, predicted=0.2, predicted_gate=0.15, hit=0.1)
    assert exact_bytes(8, 16, rates, Bits()) == (16 + 8 + 4) * 8 * 2
    bits = Bits(model=4, predictor=8)
    assert predicted_bytes(8, 20, low_rank_bytes(8, 20, 3, Bits()), rates, Bits()) == 3 * (8 + 20) * 2 + 9 * 8 * 2
    assert predicted_bytes(32, 20, low_rank_bytes(32, 20, 64, bits), rates, bits) == 64 * 52 + 9 * 32 / 2
    assert low_rank_bytes(32, 20, 3, bits) == 3 * 32 + 3 * 20 * 2  # rows of fc2 that no block fits are F16


@pytest.mark.parametrize("linear", [False, True])
def test_the_gradient_written_out_is_autograds(linear: bool):
    generator = torch.Generator().manual_seed(0)
    x, fc1, fc2 = (torch.randn(shape, generator=generator) for shape in ((10, 6), (4, 6), (7, 4)))
    energy = torch.rand(10, 7, generator=generator)
    weight = energy + 0.1
    *ours, kept = _gradient(x, fc1, fc2, weight, energy, 0.3, 10, False, linear)
    fc1, fc2 = fc1.clone().requires_grad_(), fc2.clone().requires_grad_()
    z = (x @ fc1.T if linear else (x @ fc1.T).relu()) @ fc2.T
    softplus = torch.nn.functional.softplus
    ((weight * softplus(-z) + 0.3 * softplus(z)).sum() / 10).backward()
    assert torch.allclose(ours[0], fc1.grad, atol=1e-6)
    assert torch.allclose(ours[1], fc2.grad, atol=1e-6)
    assert kept == pytest.approx(float(energy[z >= 0].sum() / energy.sum()))


def report(rank: int, density: float, bytes_predicted: float) -> tuple[None, FFNReport]:
    return None, FFNReport(layer=0, expert=0, rank=rank, predicted_density=density, bytes_predicted=bytes_predicted)


def test_the_search_stops_where_a_wider_predictor_reads_more():
    costs = {32: 10.0, 64: 8.0, 96: 9.0, 128: 1.0}
    asked = []

    def attempt(rank):
        asked.append(rank)
        return report(rank, 0.3, costs[rank])

    assert [trial.rank for _, trial in try_ranks(iter(costs), attempt, None)] == [32, 64, 96]
    assert asked == [32, 64, 96]


def test_the_search_widens_until_the_density_is_met():
    density = {32: 0.4, 64: 0.25, 96: 0.19, 128: 0.18}
    trials = [
        found for _, found in try_ranks(iter(density), lambda rank: report(rank, density[rank], float(rank)), 0.2)
    ]  # fmt: skip
    assert [trial.rank for trial in trials] == [32, 64, 96, 128]
    (way,) = [way for way in choices(trials, [t.rank for t in trials], 0.2, exact=False) if way.weights < 128]
    assert trials[way.candidate].rank == 96


def best_by_candidate(ffns: list[list[Choice]], budget: float) -> float:
    reads = [sum(way.bytes for way in ways) for ways in product(*ffns) if sum(way.weights for way in ways) <= budget]
    return min(reads)


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_goes_where_it_saves_most(seed: int):
    generator = np.random.default_rng(seed)
    ffns = []
    for _ in range(5):
        exact, tries = float(generator.integers(80, 120)), generator.integers(1, 4)
        ways = [Choice(32.0 * (i + 1), float(generator.integers(20, 110)), i) for i in range(tries)]
        ffns.append([*ways, Choice(0, exact, None)])
    budget = 32.0 * generator.integers(1, 12)
    taken = spend(ffns, budget)
    ways = [next(way for way in ffn if way.candidate == candidate) for ffn, candidate in zip(ffns, taken, strict=True)]
    assert sum(way.weights for way in ways) <= budget
    # the greedy choice may leave over what is less than one step, whose saving bounds what it misses
    largest = max((max(way.bytes for way in ffn) - min(way.bytes for way in ffn)) for ffn in ffns)
    assert sum(way.bytes for way in ways) <= best_by_candidate(ffns, budget) + largest
    assert spend(ffns, None) == [min(ffn, key=lambda way: (way.bytes, way.weights)).candidate for ffn in ffns]


def test_a_budget_is_spent_on_the_layer_that_saves_more():
    def ffn(saved: float) -> list[Choice]:
        return [Choice(32, 100 - saved, 0), Choice(64, 100 - 1.5 * saved, 1), Choice(0, 100, None)]

    assert spend([ffn(10), ffn(50)], 32) == [None, 0]
    assert spend([ffn(10), ffn(50)], 64) == [None, 1]
    assert spend([ffn(30), ffn(50)], 64) == [0, 0]
    assert spend([ffn(30), ffn(50)], 1000) == [1, 1]


def test_candidates_are_multiples_of_32():
    ranks = list(ranks_to_try(1024, None))
    assert ranks[:6] == [32, 64, 96, 128, 192, 256]
    assert all(rank % 32 == 0 for rank in ranks)
    assert ranks[-1] <= 1024
    assert list(ranks_to_try(1024, 100)) == [32, 64, 96]


def test_no_rank_is_tried_that_the_budget_never_allows(sparse: Path):
    spec = Checkpoint(sparse).spec
    one = (spec.width + spec.neurons) / spec.parameters
    assert highest_rank(spec, 40.5 * one * spec.layers) == 81  # twice what every layer could have
    assert highest_rank(spec, 32.5 * one) == 32
    assert highest_rank(spec, None) is None


def test_a_budget_that_cannot_be_met_is_refused(sparse: Path):
    each = (64 + 128) / Checkpoint(sparse).spec.parameters
    for fields, sentence in (
        ({"rank": 64, "budget": 0.01}, f"--rank 64: predictors of {2 * 64 * each:.1%} of the model's parameters, over"),
        ({"budget": 0.001}, f"--budget 0.001: rank 32 for one FFN makes predictors of {32 * each:.1%} of the model's"),
        ({"budget": 0.02, "everywhere": True}, "--budget 0.02: rank 32 for every FFN makes predictors of"),
    ):
        with pytest.raises(TsconvertError) as error:
            train_predictors(PredictorConfig(model=str(sparse), **fields))
        assert str(error.value).startswith(sentence)


def test_auto_leaves_what_does_not_pay_to_exact_mode(sparse: Path, text: Source):
    asked = PredictorConfig(
        model=str(sparse), data=(text,), tokens=4096, context=64, training=QUICK, target_energy=0.999,
        model_bits=0.25,
    )  # fmt: skip
    found = train_predictors(asked)
    assert {ffn.reason for ffn in found.ffns} == {"does not pay"}
    assert found.perplexity_predicted == pytest.approx(found.perplexity_exact)
    assert found.predictor_parameters == 0


def test_auto_within_a_budget(sparse: Path, text: Source):
    asked = PredictorConfig(
        model=str(sparse), data=(text,), tokens=4096, context=64, training=QUICK, target_energy=0.9, everywhere=True,
        budget=0.05,
    )  # fmt: skip
    found = train_predictors(asked)
    assert 0 < found.size_share <= 0.05
    assert all(ffn.rank % 32 == 0 for ffn in found.ffns)


def test_estimate_tries_ranks_and_writes_nothing(sparse: Path, text: Source):
    asked = PredictorConfig(model=str(sparse), data=(text,), tokens=4096, context=64, training=QUICK, target_energy=0.9)
    found = estimate_predictors(asked)
    assert [(trial.layer, trial.rank) for trial in found.trials] == [(0, 32), (0, 64), (1, 32), (1, 64)]
    assert set(found.best) == {0, 1}
    json.dumps(found.to_json())
    assert "pay" in str(found)


def test_a_folder_of_sign_bits_is_refused(tmp_path: Path):
    folder = tmp_path / "signs"
    some = Predictor(fc1_RD=np.ones((2, 8), np.float32), fc2_FR=np.ones((4, 2), np.float32))
    save_predictors(PredictorSet(model_fingerprint="m", ffns=[[some]], report={}), folder)
    file = folder / "layer-00000.safetensors"
    tensors = {"experts.0.signs": np.zeros((2, 4, 1), np.uint8), "experts.0.width": np.array([8], np.int32)}
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(TsconvertError) as error:
        load_predictors(folder).ffns[0]
    assert str(error.value) == (
        f"{file}: expert 0: it holds sign bits, which no version since 0.1 uses; train them again"
    )


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank": 1}, "--rank 1: it must be at least 2, or auto"),
        ({"target_energy": 1.0}, "--target-energy 1: it must lie between 0 and 1"),
        ({"max_density": -1.0}, "--max-density -1: it must lie between 0 and 1"),
        ({"budget": 2.0}, "--budget 2: it must lie between 0 and 1"),
    ],
)
def test_bad_settings_say_what_is_wrong(fields: dict, sentence: str):
    with pytest.raises(TsconvertError) as error:
        PredictorConfig(model="m", **fields)
    assert str(error.value) == sentence


def test_hot_sets_and_energy_shares():
    counts = np.array([80, 5, 10, 5])
    assert hot_set(counts, 0.8).tolist() == [0]
    assert hot_share(counts, 0.85) == 0.5
    assert hot_share(np.zeros(4, np.int64)) == 0
    assert overlap(np.array([0, 1]), np.array([1, 2])) == pytest.approx(1 / 3)
    histogram = EnergyHistogram()
    histogram.add(torch.tensor([[100.0, 0, 0, 0], [0, 1.0, 1.0, 0]]))
    assert histogram.share_of_values(0.9) == 1 / 8
    assert histogram.share_of_values(0.995) == 3 / 8


def test_both_commands(sparse: Path, text: Source, tmp_path: Path):
    data = ["--data", text.path, "--tokens", "2K", "--context", "64", "--json"]
    runner = CliRunner()
    done = runner.invoke(main, ["profile", str(sparse), "--out", str(tmp_path / "p.safetensors"), *data])
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["layers"]) == 2
    asked = ["predictors", str(sparse), "--rank", "16", "--steps", "10", *data]
    done = runner.invoke(main, [*asked, "--out", str(tmp_path / "pred")])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["mean"]["rank"] == 16
    assert (tmp_path / "pred" / "layer-00001.safetensors").is_file()
    done = runner.invoke(main, asked)
    assert done.exit_code == 2
    assert "--out is missing; only --estimate goes without" in done.stderr


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q4_0"])
def test_what_is_stored_is_what_ggml_makes_of_it(type_name: str):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    weight[1, 32:] = -3e-4
    stored = as_stored(weight, type_name)
    theirs = ggml.dequantize(quantize(weight.numpy(), type_name), type_name, weight.shape)
    assert np.abs(stored.numpy() - theirs).max() <= 1e-6
    again = ggml.dequantize(quantize(stored.numpy(), type_name), type_name, weight.shape)
    assert np.array_equal(again, stored.numpy())


@pytest.mark.parametrize("fields", [{}, {"activation": "reglu"}, {"activation": "tswiglu", "up_threshold": 0.02}])
def test_labels_are_what_the_layer_computes(sparse: Path, fields: dict[str, Any]):
    stream = Stream(Checkpoint(sparse), torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0)))
    layer = stream.layer(0)
    for name, value in (fields | {"threshold": 0.01}).items():
        setattr(layer.module.mlp, name, value)
    layer.activation = fields.get("activation", "drelu")
    stream.attend(layer)
    [ffn] = layer_ffns(layer, stream, 128)
    x_TD = ffn.inputs(ffn.train)
    labels, near = ffn.labels(x_TD), ffn.labels(x_TD, autocast=True)
    gate_TF, up_TF = x_TD @ ffn.gate_FD.T, x_TD @ ffn.up_FD.T
    h_TF = layer.activations(x_TD)
    assert torch.equal(labels.fires_TF, h_TF != 0)
    assert 0 < labels.fires_TF.float().mean() < 1
    energy_TF = (h_TF * ffn.down_DF.norm(dim=0)) ** 2
    both_TF = (energy_TF / energy_TF.sum(1, keepdim=True) + energy_TF / energy_TF.sum(1).mean()) / 2
    assert torch.allclose(labels.energy_TF, both_TF, atol=1e-6)
    first_TF = up_TF.abs() > 0.02 if layer.activation == "tswiglu" else gate_TF > 0.01
    assert torch.equal(labels.gate_TF, first_TF)
    assert not (labels.fires_TF & ~labels.gate_TF).any()
    assert (near.fires_TF == labels.fires_TF).float().mean() > 0.98
    assert float((near.energy_TF - labels.energy_TF).norm() / labels.energy_TF.norm()) < 0.02


def test_training_looks_through_the_rounding(sparse: Path):
    """For the same energy, in Q4_0, a predictor that was trained so names fewer neurons than one rounded afterwards."""
    stream = Stream(Checkpoint(sparse), torch.randint(3, 4096, (48, 64), generator=torch.Generator().manual_seed(0)))
    layer = stream.layer(0)
    stream.attend(layer)
    [ffn] = layer_ffns(layer, stream, 40 * 64)
    density = {}
    for name in ("Q4_0", "F16"):
        how = Training(steps=150, batch_tokens=256, autocast=False, stored_as=name)
        generator = torch.Generator().manual_seed(0)
        trainer = PredictorTrainer(ffn, 32, 0.9, how, generator)
        trainer.train(generator)
        fc1_RD, fc2_FR = (as_stored(weight, "Q4_0") for weight in (trainer.fc1_RD, trainer.fc2_FR))
        predictor = Predictor(fc1_RD=fc1_RD.numpy(), fc2_FR=fc2_FR.numpy())
        predictor = replace(predictor, threshold=calibrate(ffn, predictor, 0.9))
        density[name] = judge(ffn, predictor, Bits()).predicted_density
    assert density["Q4_0"] < density["F16"]


def test_a_rank_beyond_the_ffns_is_refused_before_the_work(sparse: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        train_predictors(PredictorConfig(model=str(sparse), out=tmp_path / "out", rank=100_000))
    assert str(caught.value) == "--rank 100000: the FFNs are 64 wide, of 128 neurons; give at most 128"
    with pytest.raises(TsconvertError) as caught:
        estimate_predictors(PredictorConfig(model=str(sparse), rank=100_000))
    assert str(caught.value) == "--rank 100000: the FFNs are 64 wide, of 128 neurons; give at most 128"
    assert not list(tmp_path.iterdir())
