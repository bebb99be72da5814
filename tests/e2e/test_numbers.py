"""The numbers that break programs, through the chain: NaN, infinity, denormals, zeros, what never or always fires.

One model has all of them: layer 0 never fires (its gates are zero), layer 1 always does (its neurons look at a channel
that is positive for every token), layer 2 has rows of zeros, of denormals and of numbers near float16's ends.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import VerifyConfig, verify
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.predictors.train import train_predictors
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.quant.imatrix.collect import ImatrixConfig, imatrix
from tsconvert.quant.quantize import QuantizeConfig, quantize
from tsconvert.runner.model import load

Make = Callable[..., Path]
SHORT = {"tokens": 1024, "context": 64}
TRAINING = LocalRecovery(steps=4, batch_tokens=128, learning_rate=3e-3)
PREDICTORS = {"rank": 8, "training": Training(steps=6, batch_tokens=128), **SHORT}


def change(folder: Path, changes: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    changes(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def extreme(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.embed_tokens.weight"][:, 0] = 0.5
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "self_attn.o_proj.weight"][0] = 0  # channel 0 stays as the embedding has it
        tensors[prefix + "mlp.down_proj.weight"][0] = 0
        tensors[prefix + "post_attention_layernorm.weight"][:] = 1
    tensors["model.layers.0.mlp.gate_proj.weight"][:] = 0
    for name in ("gate", "up"):
        weight = tensors[f"model.layers.1.mlp.{name}_proj.weight"]
        weight[:] = 0
        weight[:, 0] = 0.5
    for name in ("mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"):
        weight = tensors[f"model.layers.2.{name}.weight"]
        weight[0], weight[1], weight[2], weight[3, 0] = 0.0, 1e-40, 6e-8, 3e4
    tensors["model.layers.2.mlp.down_proj.weight"][:, 5] = 1e-40


@pytest.fixture(scope="module")
def dense_extreme(make_checkpoint: Make) -> Path:
    return change(make_checkpoint("mistral", num_hidden_layers=3, seed=4), extreme)


@pytest.fixture(scope="module")
def sparse_extreme(dense_extreme: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extreme") / "sparse"
    relufy(RelufyConfig(model=str(dense_extreme), out=out, recover="none", align=False))
    return out


@pytest.fixture(scope="module")
def trained(sparse_extreme: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extreme") / "predictors"
    train_predictors(PredictorConfig(model=str(sparse_extreme), out=out, everywhere=True, **PREDICTORS))
    return out


def test_recovery_of_a_layer_whose_ffn_adds_nothing(dense_extreme: Path, tmp_path: Path):
    report = relufy(RelufyConfig(model=str(dense_extreme), out=tmp_path / "out", training=TRAINING, **SHORT))
    figures = [report.perplexity, report.dense_perplexity, *(report.energy_kept or ())]
    figures += [each for layer in report.layers for each in (layer.error_before, layer.error_after, layer.density)]
    assert np.isfinite(figures).all()
    Checkpoint(tmp_path / "out").require_finite()


def test_a_profile_says_never_and_always(sparse_extreme: Path):
    found = profile(ProfileConfig(model=str(sparse_extreme), **SHORT))
    never, always, some = found.layers
    assert (never.density, never.gate_density, never.hot80, never.energy98) == (0, 0, 0, 0)
    assert (always.density, always.gate_density) == (1, 1)
    assert 0 < some.density < 1
    assert all(np.isfinite(layer.energy98) for layer in found.layers)
    assert "nan" not in str(found)


def test_predictors_of_layers_that_never_or_always_fire(sparse_extreme: Path, trained: Path):
    found = load_predictors(trained, Checkpoint(sparse_extreme).fingerprint)
    report = {ffn["layer"]: ffn for ffn in found.report["ffns"]}
    assert report[0]["density"] == 0
    assert report[0]["recall"] == 1
    assert report[1]["density"] == 1
    assert report[1]["recall"] > 0.9
    for experts in found.ffns:
        for predictor in filter(None, experts):
            assert np.isfinite(predictor.fc1_RD).all()
            assert np.isfinite(predictor.fc2_FR).all()
            assert np.isfinite(predictor.threshold)


@pytest.mark.parametrize(
    "type_name", ["F16", *(pytest.param(each, marks=pytest.mark.slow) for each in ("Q8_0", "Q4_0"))]
)
def test_export_and_run_agree_in_every_mode(sparse_extreme: Path, trained: Path, tmp_path: Path, type_name: str):
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=str(sparse_extreme), out=out, type_name=type_name, predictors=trained))
    report = verify(VerifyConfig(model=str(sparse_extreme), file=out, predictors=trained))
    assert report.passed, str(report)
    tokens = [1, 22, 333, 4, 55]
    with load(out, threads=2) as model:
        found = {}
        for mode in ("dense", "exact", "predicted"):
            model.mode = mode
            model.reset_density()
            found[mode] = model.logits(tokens)
            assert np.isfinite(found[mode]).all(), mode
            fired = model.density.fired
            assert fired[0] == 0
            assert fired[1] == 1 if mode != "predicted" else fired[1] > 0.9
        np.testing.assert_allclose(found["exact"], found["dense"], atol=1e-3 * np.abs(found["dense"]).max())
        assert model.density.down[0] == 0


def test_an_importance_matrix_of_it_and_quantization(sparse_extreme: Path, tmp_path: Path):
    found = imatrix(ImatrixConfig(model=str(sparse_extreme), out=tmp_path / "i.gguf", **SHORT))
    assert found.entries
    export_unverified(ExportConfig(model=str(sparse_extreme), out=tmp_path / "f.gguf", type_name="F16"))
    asked = QuantizeConfig(
        source=tmp_path / "f.gguf", out=tmp_path / "q.gguf", type_name="Q4_0", imatrix=tmp_path / "i.gguf"
    )
    with pytest.raises(TsconvertError, match=r"i\.gguf: blk\.\d\.ffn_down\.weight has mean squares up to "):
        quantize(asked)  # ggml's encoders abort on such
    quantize(replace(asked, imatrix=None))
    with load(tmp_path / "q.gguf", threads=1) as model:
        assert np.isfinite(model.logits([1, 22, 333])).all()


@pytest.fixture(scope="module")
def dead_expert(make_checkpoint: Make) -> Path:
    """Experts 0 and 1 share all tokens; 2 and 3 are never the router's choice."""

    def starve(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            router = (
                tensors[f"model.layers.{layer}.mlp.gate.weight"]
                if (f"model.layers.{layer}.mlp.gate.weight" in tensors)
                else tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
            )
            router[1], router[2], router[3] = -router[0], 0, 0

    return change(make_checkpoint("mixtral", num_experts_per_tok=1, seed=5), starve)


def test_a_dead_expert_through_the_chain(dead_expert: Path, tmp_path: Path):
    sparse, predictors, out = tmp_path / "sparse", tmp_path / "predictors", tmp_path / "m.gguf"
    made = relufy(RelufyConfig(model=str(dead_expert), out=sparse, training=TRAINING, **SHORT))
    assert "experts that no token reached: 2 of layer 0, 3 of layer 0, 2 of layer 1, 3 of layer 1;" in str(made)
    Checkpoint(sparse).require_finite()
    found = profile(ProfileConfig(model=str(sparse), **SHORT))
    assert "layer 0: no token reached expert 2, 3; give more or other --data" in str(found)
    assert [layer.densities_E[2:] for layer in found.layers] == [[0, 0]] * 2
    train_predictors(PredictorConfig(model=str(sparse), out=predictors, **PREDICTORS))
    stored = load_predictors(predictors)
    assert all(experts[2] is None and experts[3] is None for experts in stored.ffns)
    assert imatrix(ImatrixConfig(model=str(sparse), out=tmp_path / "i.gguf", **SHORT)).missed_experts == {
        f"blk.{layer}.ffn_down_exps.weight": [2, 3] for layer in range(2)
    }
    export_unverified(ExportConfig(model=str(sparse), out=out, type_name="Q8_0", predictors=predictors))
    with load(out, threads=2) as model:
        for mode in ("dense", "exact", "predicted"):
            model.mode = mode
            assert np.isfinite(model.logits([1, 22, 333])).all()


@pytest.mark.parametrize(
    ("stage", "value"),
    [
        ("copy", np.nan), ("recovery", np.inf), ("profile", np.nan), ("predictors", np.inf), ("imatrix", np.nan),
        ("export", np.inf),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_named_before_work_begins(dense: Path, drelu_copy, tmp_path: Path, stage, value):
    model = drelu_copy(stage)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = value

    change(model, spoil)
    run = {
        "copy": lambda: relufy(RelufyConfig(model=str(model), out=tmp_path / "o", recover="none", align=False)),
        "recovery": lambda: relufy(RelufyConfig(model=str(model), out=tmp_path / "o", training=TRAINING, **SHORT)),
        "profile": lambda: profile(ProfileConfig(model=str(model), **SHORT)),
        "predictors": lambda: train_predictors(PredictorConfig(model=str(model), out=tmp_path / "o", **PREDICTORS)),
        "imatrix": lambda: imatrix(ImatrixConfig(model=str(model), out=tmp_path / "o.gguf", **SHORT)),
        "export": lambda: export_unverified(ExportConfig(model=str(model), out=tmp_path / "o.gguf")),
    }[stage]
    with pytest.raises(TsconvertError) as caught:
        run()
    assert str(caught.value) == (
        f"{model / 'model.safetensors'}: tensor model.layers.1.mlp.up_proj.weight holds 1 values that are NaN or"
        " infinite, the first in row 7; the weights are damaged or training diverged, go back to a sound checkpoint"
    )
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "o.gguf").exists()


@pytest.fixture
def drelu_copy(dense: Path, tmp_path: Path):
    """A folder to spoil: dense for the stages that relufy, sparse for the others."""

    def copy(stage: str) -> Path:
        out = tmp_path / "spoilt"
        relufy(RelufyConfig(model=str(dense), out=out, recover="none", align=False))
        if stage in ("copy", "recovery"):
            config = (dense / "config.json").read_text()
            (out / "config.json").write_text(config)
        return out

    return copy


def test_weights_of_nan_in_a_file_are_told_when_they_are_run(sparse_extreme: Path, tmp_path: Path):
    out = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=str(sparse_extreme), out=out, type_name="F16"))
    from tsconvert.model.files.gguf.file import GgufFile

    tensor = GgufFile(out).tensors["blk.2.attn_v.weight"]
    raw = bytearray(out.read_bytes())
    raw[tensor.offset : tensor.offset + 2] = b"\xff\x7f"
    out.write_bytes(raw)
    with load(out, threads=1) as model, pytest.raises(TsconvertError) as caught:
        list(model.generate([1, 22, 333], limit=2))
    assert str(caught.value) == (
        "the logits are NaN or infinite: the file's weights are damaged or too large for their type; export the"
        " model again with --type F32"
    )


def test_shifting_thresholds_of_layers_that_never_or_always_fire(dense_extreme: Path, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = relufy(
            RelufyConfig(model=str(dense_extreme), out=tmp_path / "o", training=TRAINING, shift=0.99, **SHORT)
        )
    assert found.shift is not None
    assert np.isfinite(found.shift.thresholds).all()
    assert found.shift.thresholds[0] >= 0
