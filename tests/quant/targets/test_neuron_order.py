"""Neurons in order of firing: an exact permutation, kept in the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.tensor_names import Place
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.file import load_profile
from tsconvert.predictors.profile.profile import profile
from tsconvert.predictors.train import train_predictors
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def counted(drelu: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    profile(ProfileConfig(model=str(drelu), out=out, tokens=512, context=64))
    return out


def by_counts(counts_F: np.ndarray) -> list[int]:
    return sorted(range(len(counts_F)), key=lambda neuron: (-counts_F[neuron], neuron))


def test_a_profile_permutes_gate_up_down_and_fc2_alike(
    drelu: Path, counted: Path, make_predictors: Make, tmp_path: Path
):
    predictors = make_predictors(drelu)
    export_unverified(
        ExportConfig(model=drelu, out=tmp_path / "m.gguf", type_name="F32", profile=counted, predictors=predictors)
    )
    file, checkpoint, found = GgufFile(tmp_path / "m.gguf"), open_checkpoint(drelu), load_profile(counted)
    for layer in range(2):
        order = by_counts(found.counts(layer))
        assert order != list(range(1024))
        assert file.tensors[f"blk.{layer}.ffn_order"].raw.view("<i4").tolist() == order
        decoded = {name: file.tensors[f"blk.{layer}.{name}.weight"].to_float32() for name in
                   ("ffn_gate", "ffn_up", "ffn_down_t", "fc1", "fc2")}  # fmt: skip
        assert np.array_equal(decoded["ffn_gate"], checkpoint.array(Place("ffn_gate", layer))[order])
        assert np.array_equal(decoded["ffn_up"], checkpoint.array(Place("ffn_up", layer))[order])
        assert np.array_equal(decoded["ffn_down_t"], checkpoint.array(Place("ffn_down", layer)).T[order])
        predictor = load_predictors(predictors).ffns[layer][0]
        assert np.array_equal(decoded["fc1"], predictor.fc1_RD)
        assert np.array_equal(decoded["fc2"], predictor.fc2_FR[order])


def test_powerinfer_keeps_the_order_in_a_key(drelu: Path, counted: Path, make_predictors: Make, tmp_path: Path):
    config = {"model": drelu, "target": "powerinfer", "profile": counted, "predictors": make_predictors(drelu)}
    export_unverified(ExportConfig(out=tmp_path / "m.gguf", **config))
    file, found = GgufFile(tmp_path / "m.gguf"), load_profile(counted)
    orders = np.array(file.metadata["tsconvert.neuron_order"]).reshape(2, 1024)
    assert [order.tolist() for order in orders] == [by_counts(found.counts(layer)) for layer in range(2)]
    assert not any("order" in name for name in file.tensors)
    gate = file.tensors["blk.1.ffn_gate.weight"].to_float32()
    wanted = open_checkpoint(drelu).array(Place("ffn_gate", 1))[orders[1]]
    assert np.array_equal(gate, wanted.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("mode", ["dense", "exact", "predicted"])
def test_the_order_changes_no_logit(mode: str, drelu: Path, counted: Path, make_predictors: Make, tmp_path: Path):
    predictors = make_predictors(drelu)
    logits = []
    for name, options in {"by firing": {"profile": counted}, "as it is": {"order": False}}.items():
        out = tmp_path / f"{name}.gguf"
        export_unverified(ExportConfig(model=drelu, out=out, type_name="F32", predictors=predictors, **options))
        with load(out, mode=mode, threads=1) as model:
            logits.append(model.logits([1, 300, 500, 7, 3000]))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


def test_experts_have_orders_of_their_own(sparse_moe: Path, tmp_path: Path):
    seen = tmp_path / "profile.safetensors"
    profile(ProfileConfig(model=str(sparse_moe), out=seen, tokens=512, context=64))
    export_unverified(ExportConfig(model=sparse_moe, out=tmp_path / "m.gguf", type_name="F32", profile=seen))
    file, found, checkpoint = GgufFile(tmp_path / "m.gguf"), load_profile(seen), open_checkpoint(sparse_moe)
    assert file.tensors["blk.1.ffn_order"].shape == (4, 128)
    up_EFD = file.tensors["blk.1.ffn_up_exps.weight"].to_float32()
    for expert in range(4):
        order = by_counts(found.counts(1, expert))
        assert np.array_equal(up_EFD[expert], checkpoint.array(Place("ffn_up", 1, expert))[order])


def test_without_a_profile_the_predictors_counts_are_taken(drelu: Path, tmp_path: Path):
    folder = tmp_path / "predictors"
    training = Training(steps=2, batch_tokens=64)
    train_predictors(PredictorConfig(model=str(drelu), out=folder, tokens=512, context=64, rank=4, training=training))
    fired = [experts[0].fired_F for experts in load_predictors(folder).ffns]
    assert all(0 < counts.max() <= 64 for counts in fired)
    export_unverified(ExportConfig(model=drelu, out=tmp_path / "m.gguf", predictors=folder))
    export_unverified(ExportConfig(model=drelu, out=tmp_path / "off.gguf", predictors=folder, order=False))
    file = GgufFile(tmp_path / "m.gguf")
    for layer in range(2):
        assert file.tensors[f"blk.{layer}.ffn_order"].raw.view("<i4").tolist() == by_counts(fired[layer])
    assert "blk.0.ffn_order" not in GgufFile(tmp_path / "off.gguf").tensors


def test_a_profile_of_another_model_is_refused(moe: Path, dense: Path, drelu: Path, counted: Path, tmp_path: Path):
    other = Path(shutil.copytree(drelu, tmp_path / "other"))
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (other / "model.safetensors").write_bytes(data)
    made_for, this = open_checkpoint(drelu).fingerprint[:12], open_checkpoint(other).fingerprint[:12]
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=other, out=tmp_path / "m.gguf", profile=counted))
    assert str(caught.value) == (
        f"{counted}: this profile is of another model (fingerprint {made_for}, this one is {this}); make one of this"
        " model"
    )
    with pytest.raises(TsconvertError) as caught:
        export_unverified(ExportConfig(model=dense, out=tmp_path / "m.gguf", profile=counted))
    assert str(caught.value) == (
        f"{dense}: no neuron of a SwiGLU model is silent, so there is no order of firing; leave --profile out"
    )
