import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.predictors.folder import PredictorSet, load_predictors, save_predictors
from tsconvert.predictors.powerinfer_folder import load_powerinfer_predictors
from tsconvert.predictors.predictor import Predictor

Make = Callable[..., Path]
D, F, R = 64, 128, 24


def some(seed: int = 0, threshold: float = 0.0) -> Predictor:
    rng = np.random.default_rng(seed)
    return Predictor(
        fc1_RD=rng.standard_normal((R, D)).astype(np.float32),
        fc2_FR=rng.standard_normal((F, R)).astype(np.float32),
        threshold=threshold,
    )


def predictors_of(folder: Path, *experts: Predictor | None) -> PredictorSet:
    return PredictorSet(model_fingerprint=Checkpoint(folder).fingerprint, ffns=[[e] for e in experts], report={"x": 1})


def test_folding_keeps_every_sign_over_10k_tokens():
    rng = np.random.default_rng(1)
    predictor = some()
    norm_D = rng.uniform(-2, 2, D).astype(np.float32)
    residual_TD = (rng.standard_normal((10_000, D)) * np.exp(rng.uniform(-5, 5, (10_000, 1)))).astype(np.float32)
    scale_T1 = 1 / np.sqrt((residual_TD.astype(np.float64) ** 2).mean(1, keepdims=True) + 1e-5)
    wide = Predictor(fc1_RD=predictor.fc1_RD.astype(np.float64), fc2_FR=predictor.fc2_FR.astype(np.float64))
    hidden_TR = np.maximum((residual_TD * scale_T1 * norm_D) @ wide.fc1_RD.T, 0)
    normed_TF = hidden_TR @ wide.fc2_FR.T
    folded = wide.folded(norm_D.astype(np.float64))
    before_TF = np.maximum(residual_TD.astype(np.float64) @ folded.fc1_RD.T, 0) @ folded.fc2_FR.T
    assert np.array_equal(normed_TF >= 0, before_TF >= 0)
    # and in float32, as it runs, but for logits that are zero to rounding
    narrow_TF = predictor.folded(norm_D).logits(residual_TD) * scale_T1
    clear_TF = np.abs(normed_TF) > 1e-4
    assert clear_TF.mean() > 0.999
    assert np.array_equal((narrow_TF >= 0)[clear_TF], (normed_TF >= 0)[clear_TF])


def test_a_threshold_other_than_zero_does_not_fold():
    with pytest.raises(TsconvertError) as error:
        some(threshold=0.25).folded(np.ones(D, np.float32))
    assert str(error.value) == "a predictor with threshold 0.25 cannot take the input before the norm; set it to 0"


def test_the_folder_round_trips(sparse: Path, tmp_path: Path):
    made = predictors_of(sparse, some(1, threshold=-0.125), None)
    save_predictors(made, tmp_path / "p")
    read = load_predictors(tmp_path / "p", made.model_fingerprint)
    assert read.report == made.report
    assert read.ffns[1] == [None]
    assert read.ffns[0][0].threshold == -0.125
    assert np.array_equal(read.ffns[0][0].fc1_RD, made.ffns[0][0].fc1_RD)
    assert np.array_equal(read.ffns[0][0].fc2_FR, made.ffns[0][0].fc2_FR)


def test_what_is_no_predictor_folder_says_so(sparse: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as error:
        load_predictors(tmp_path)
    assert (
        str(error.value)
        == f"{tmp_path}: no predictor folder (config.json is missing); `tsconvert predictors` makes one"
    )
    folder = tmp_path / "p"
    save_predictors(predictors_of(sparse, some()), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format_version": 3}))
    with pytest.raises(TsconvertError) as error:
        load_predictors(folder)
    assert str(error.value) == (f"{folder / 'config.json'}: format version 3, this tsconvert reads 2; train them again")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "layer-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(TsconvertError, match=r"layer-00000.safetensors: cannot be read \(.*\); train them again"):
        load_predictors(folder).ffns[0]
    (folder / "layer-00000.safetensors").unlink()
    with pytest.raises(TsconvertError) as error:
        load_predictors(folder)
    missing = folder / "layer-00000.safetensors"
    assert str(error.value) == f"{missing}: missing from the predictor folder; train them again"
    (folder / "config.json").write_text("{torn")
    with pytest.raises(TsconvertError, match="not a predictor folder that can be read"):
        load_predictors(folder)


def save_as_powerinfer(folder: Path, *layers: Predictor) -> None:
    """Write a folder as PowerInfer's trainer does: predictors of the residual before the norm."""
    folder.mkdir()
    for i, predictor in enumerate(layers):
        state = {"fc1.weight": torch.from_numpy(predictor.fc1_RD), "fc2.weight": torch.from_numpy(predictor.fc2_FR)}
        torch.save(state, folder / f"model_{i}.pt")
    (folder / "config.json").write_text('{"sparse_threshold": 0.0}')


def test_powerinfers_folder_is_read_as_it_is(sparse: Path, tmp_path: Path):
    made = some(1), some(2)
    save_as_powerinfer(tmp_path / "pi", *made)
    read = load_powerinfer_predictors(tmp_path / "pi", Checkpoint(sparse))
    assert not read.normed
    for ours, (theirs,) in zip(made, read.ffns, strict=True):
        assert theirs.threshold == 0
        assert np.array_equal(ours.fc1_RD, theirs.fc1_RD)
        assert np.array_equal(ours.fc2_FR, theirs.fc2_FR)


def test_a_damaged_powerinfer_folder_is_refused(sparse: Path, tmp_path: Path):
    checkpoint, out = Checkpoint(sparse), tmp_path / "pi"
    with pytest.raises(TsconvertError) as error:
        load_powerinfer_predictors(tmp_path, checkpoint)
    assert str(error.value) == (
        f"{tmp_path}: no PowerInfer predictor folder; give the one that holds config.json and model_0.pt"
    )
    save_as_powerinfer(out, some(1), some(2))
    (out / "model_1.pt").write_bytes(b"torn")
    with pytest.raises(TsconvertError, match=r"not a file that torch\.save writes since PyTorch 1\.6; save it again"):
        load_powerinfer_predictors(out, checkpoint)
    (out / "model_1.pt").unlink()
    with pytest.raises(TsconvertError, match=r"missing; PowerInfer's predictors are one model_N\.pt a layer, get the"):
        load_powerinfer_predictors(out, checkpoint)
    (out / "config.json").write_text('{"sparse_threshold": 0.5}')
    with pytest.raises(TsconvertError) as error:
        load_powerinfer_predictors(out, checkpoint)
    assert str(error.value) == (
        f"{out / 'config.json'}: sparse_threshold is 0.5, and only 0 carries over to the normed input; train others"
        " with `tsconvert predictors`"
    )
