"""Linear predictors, those of ReGLU models: where they start, and that every step of the chain takes them as linear."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.sweep import Stream
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.energy import FFN
from tsconvert.predictors.folder import PredictorSet, load_predictors, save_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.train import train_predictors
from tsconvert.predictors.training.layer_candidates import layer_ffns
from tsconvert.predictors.training.linear_start import closest_linear
from tsconvert.predictors.training.trainer import PredictorTrainer
from tsconvert.quant.config import ExportConfig
from tsconvert.quant.export import export_unverified
from tsconvert.runner.model import load
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sources import Source

Make = Callable[..., Path]
TRAIN = 40 * 64


@pytest.fixture(scope="module")
def reglu(make_sparse: Make) -> Path:
    return make_sparse(activation="reglu")


@pytest.fixture
def ffn(reglu: Path) -> FFN:
    rows = torch.randint(3, 4096, (48, 64), generator=torch.Generator().manual_seed(0))
    stream = Stream(Checkpoint(reglu), rows)
    layer = stream.layer(1)
    stream.attend(layer)
    return layer_ffns(layer, stream, TRAIN)[0]


@pytest.mark.parametrize("rank", [8, 24, 80])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_the_start_is_the_best_linear_map_of_its_rank(ffn: FFN, rank: int, threshold: float):
    """Against NumPy's reduced-rank regression: least squares on the inputs, its predictions' singular values cut."""
    ffn.layer.threshold = threshold
    x_TD = ffn.x_TD[:TRAIN].double().numpy()
    gate_FD, up_FD, down_DF = (weight.detach().double().numpy() for weight in (ffn.gate_FD, ffn.up_FD, ffn.down_DF))
    size_F = np.sqrt(np.square(x_TD @ up_FD.T).mean(0)) * np.linalg.norm(down_DF, axis=0)
    wanted_TF = (x_TD @ gate_FD.T - threshold) * size_F
    map_DF = np.linalg.lstsq(x_TD, wanted_TF, rcond=None)[0]
    left, values, right = np.linalg.svd(x_TD @ map_DF, full_matrices=False)
    best_TF = (left[:, :rank] * values[:rank]) @ right[:rank]
    fc1_RD, fc2_FR = (part.double().numpy() for part in closest_linear(ffn, rank))
    found_TF = x_TD @ fc1_RD.T @ fc2_FR.T
    assert fc1_RD.shape == (rank, 64)
    assert found_TF.std() == pytest.approx(3.0, rel=0.2)
    scale = np.vdot(found_TF, wanted_TF) / np.vdot(found_TF, found_TF)
    errors = [
        np.square(wanted_TF - each_TF).sum() / np.square(wanted_TF).sum() for each_TF in (best_TF, found_TF * scale)
    ]
    assert errors[1] <= 1.01 * errors[0] + 1e-5


def test_one_direction_a_million_times_as_large_is_no_obstacle(ffn: FFN):
    """Massive activations are: the first token's, or one channel's."""
    ffn.x_TD[:, 7] = 1e3 * (1 + ffn.x_TD[:, 7])
    ffn.x_TD[:, 8] = ffn.x_TD[:, 7] * (1 + 1e-7)
    fc1_RD, fc2_FR = closest_linear(ffn, 64)
    gate_TF = ffn.x_TD[TRAIN:] @ ffn.gate_FD.T
    assert ((ffn.x_TD[TRAIN:] @ fc1_RD.T @ fc2_FR.T > 0) == (gate_TF > 0)).float().mean() > 0.999


def test_inputs_that_are_no_numbers_are_refused(ffn: FFN):
    ffn.x_TD[3, 5] = torch.nan
    trainer = PredictorTrainer(ffn, 16, 0.9, Training(steps=2, batch_tokens=64), torch.Generator())
    with pytest.raises(TsconvertError) as caught:
        trainer.train(torch.Generator())
    assert str(caught.value) == (
        "layer 1, expert 0: the predictor's weights are no numbers after training; lower the learning rate"
    )


def test_a_linear_predictor_names_fewer_neurons_than_a_relu_network(tmp_path: Path):
    """Of the same rank and training, for the same energy of a trained model's FFN at 88 % zeros."""
    relufy(RelufyConfig(model="tiny-mistral", out=tmp_path / "m", activation="reglu", recover="none", align=False))
    checkpoint = Checkpoint(tmp_path / "m")
    stream = Stream(checkpoint, torch.from_numpy(calibration_rows(checkpoint, (), tokens=48 * 64, context=64)))
    layer = stream.layer(0)
    stream.attend(layer)
    [ffn] = layer_ffns(layer, stream, TRAIN)
    layer.threshold = float(layer.gate_up(ffn.x_TD)[0].quantile(0.88))
    named = {}
    for activation in ("reglu", "drelu"):
        how = Training(steps=100, batch_tokens=256, autocast=False)
        generator = torch.Generator().manual_seed(0)
        trainer = PredictorTrainer(ffn, 32, 0.9, how, generator) if activation == "reglu" else _relu_trainer(ffn, how)
        trainer.train(generator)
        predictor = trainer.predictor()
        assert trainer.linear == (activation == "reglu")
        x_TD, labels = ffn.x_TD[TRAIN:], ffn.labels(ffn.x_TD[TRAIN:])
        z_TF = predictor.logits(x_TD.numpy())
        order = np.argsort(-z_TF.ravel())
        kept = np.cumsum(labels.energy_TF.double().numpy().ravel()[order])
        named[activation] = np.searchsorted(kept, 0.9 * kept[-1]) / kept.size
    assert named["reglu"] < 0.9 * named["drelu"]


def _relu_trainer(ffn: FFN, how: Training) -> PredictorTrainer:
    """As a dReLU FFN's would start."""
    kind, ffn.layer.activation = ffn.layer.activation, "drelu"
    try:
        return PredictorTrainer(ffn, 32, 0.9, how, torch.Generator().manual_seed(0))
    finally:
        ffn.layer.activation = kind


def test_the_whole_chain_takes_them_as_linear(reglu: Path, text: Source, tmp_path: Path):
    how = Training(steps=60, batch_tokens=256)
    report = train_predictors(
        PredictorConfig(
            model=str(reglu), out=tmp_path / "p", data=(text,), tokens=8192, context=64, rank=32, training=how,
            target_energy=0.9,
        )
    )  # fmt: skip
    assert all(predictor.linear for (predictor,) in load_predictors(tmp_path / "p").ffns)
    further = replace(how, steps=10)
    again = PredictorConfig(
        model=str(reglu), out=tmp_path / "q", data=(text,), tokens=8192, context=64, start=tmp_path / "p",
        training=further, target_energy=0.9,
    )  # fmt: skip
    assert train_predictors(again).mean("predicted_density") == pytest.approx(
        report.mean("predicted_density"), rel=0.15
    )
    assert all(predictor.linear for (predictor,) in load_predictors(tmp_path / "q").ffns)
    logits = {}
    for target in ("sparse", "powerinfer"):
        out = tmp_path / f"{target}.gguf"
        # the types of both files; thresholds are 0, which PowerInfer takes alone
        at_zero = _at_zero(tmp_path / "p", tmp_path / target)
        export_unverified(
            ExportConfig(
                model=str(reglu), out=out, target=target, type_name="F16", predictors=at_zero, predictor_type="F16"
            )
        )
        verify(VerifyConfig(model=str(reglu), file=out, predictors=at_zero)).require()
        with load(out, threads=1, mode="predicted", cache_type="F32") as model:
            logits[target] = model.logits(list(range(5, 37)))
            assert 0 < model.density.predicted.min() < 0.9
    ranks = [GgufFile(tmp_path / f"{name}.gguf").tensors["blk.0.fc1.weight"].shape[0] for name in logits]
    assert ranks == [32, 64]
    same = np.abs(logits["sparse"] - logits["powerinfer"]).max(-1) < 1e-2 * logits["sparse"].std()
    assert same.mean() > 0.9  # a neuron within float16 of its threshold may be named by one alone


def _at_zero(folder: Path, out: Path) -> Path:
    found = load_predictors(folder)
    ffns = [[replace(predictor, threshold=0.0) for predictor in row] for row in found.ffns]
    save_predictors(PredictorSet(model_fingerprint=found.model_fingerprint, ffns=ffns, report={}), out)
    return out


def test_a_file_says_that_its_predictors_are_linear(reglu: Path, tmp_path: Path):
    """An engine that does not know the feature refuses the file; one that does without it computes something else."""
    rng = np.random.default_rng(0)
    one = Predictor(
        fc1_RD=rng.standard_normal((32, 64)).astype(np.float32),
        fc2_FR=rng.standard_normal((128, 32)).astype(np.float32), linear=True,
    )  # fmt: skip
    plain = replace(one, linear=False)
    fingerprint = Checkpoint(reglu).fingerprint
    for name, rows in {"linear": [[one], [one]], "plain": [[plain], [plain]], "mixed": [[one], [plain]]}.items():
        save_predictors(PredictorSet(model_fingerprint=fingerprint, ffns=rows, report={}), tmp_path / name)
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=str(reglu), out=out, predictors=tmp_path / "linear"))
    assert GgufFile(out).metadata["turbosparse.features"] == ["linear_predictors"]
    assert GgufFile(out).metadata["turbosparse.format_version"] == 2
    report = verify(VerifyConfig(model=str(reglu), file=out, predictors=tmp_path / "plain"))
    assert {failure.what for failure in report.failures} == {"turbosparse.features", "turbosparse.format_version"}
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=str(reglu), out=tmp_path / "n.gguf", predictors=tmp_path / "mixed"))
    assert str(caught.value) == (
        f"{tmp_path / 'mixed'}: some of its predictors are linear and some not; train them again"
    )


def test_with_relu_has_the_same_logits():
    rng = np.random.default_rng(0)
    one = Predictor(
        fc1_RD=rng.standard_normal((8, 16)).astype(np.float32), fc2_FR=rng.standard_normal((24, 8)).astype(np.float32),
        threshold=0.25, linear=True, fired_F=np.arange(24, dtype=np.float32),
    )  # fmt: skip
    x_TD = rng.standard_normal((50, 16)).astype(np.float32)
    other = one.with_relu()
    assert (other.rank, other.linear, other.threshold) == (16, False, 0.25)
    np.testing.assert_allclose(other.logits(x_TD), one.logits(x_TD), atol=1e-5)
    np.testing.assert_allclose(one.logits(x_TD), x_TD @ one.fc1_RD.T @ one.fc2_FR.T, atol=1e-5)
    assert other.with_relu() is other
    assert set(one.arrays()) == {"linear1.weight", "linear2.weight", "fired"}  # no earlier version reads these
