import shutil
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from memory import watched
from shapes import write_checkpoint
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.model import sweep as sweep_module
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.layers import Stack
from tsconvert.model.sweep import Stream
from tsconvert.predictors.config import PredictorConfig, Training
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.train import train_predictors
from tsconvert.predictors.training import layer_candidates
from tsconvert.predictors.training.candidate_store import CandidateStore
from tsconvert.predictors.training.layer_candidates import layer_ffns
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sources import Source

Make = Callable[..., Path]
QUICK = Training(steps=120, batch_tokens=256)


def config(folder: Path, text: Source, **fields: object) -> PredictorConfig:
    asked = {"data": (text,), "tokens": 8192, "context": 64, "rank": 16, "training": QUICK, "target_energy": 0.9}
    return PredictorConfig(model=str(folder), **(asked | fields))


def calibration_inputs(folder: Path, asked: PredictorConfig) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each layer the normed inputs of the held-out tokens and (h_j |down_j|)^2, from transformers' own forward."""
    rows = calibration_rows(Checkpoint(folder), asked.data, tokens=asked.tokens, context=asked.context, seed=asked.seed)
    rows = torch.from_numpy(rows)[-(len(rows) // 8) :]
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    found = []

    def hook(module, inputs):
        h_TF = module.down_proj.weight.norm(dim=0)
        x_TD = inputs[0].flatten(0, -2)
        gate, up = module.gate_proj(x_TD).relu(), module.up_proj(x_TD).relu()
        found.append((x_TD.numpy(), (gate * up * h_TF).square().double().numpy()))

    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(input_ids=rows)
    return found


@pytest.fixture(scope="module")
def trained(sparse: Path, text: Source, tmp_path_factory: pytest.TempPathFactory):
    asked = config(sparse, text, out=tmp_path_factory.mktemp("trained") / "predictors")
    return asked, train_predictors(asked), load_predictors(asked.out, Checkpoint(sparse).fingerprint)


def test_the_energy_asked_for_is_kept_on_the_calibration_tokens(trained, sparse: Path):
    asked, report, predictors = trained
    for (x_TD, energy_TF), experts, ffn in zip(
        calibration_inputs(sparse, asked), predictors.ffns, report.ffns, strict=True
    ):
        chosen = experts[0].logits(x_TD) >= experts[0].threshold
        whole_T = energy_TF.sum(-1)
        by_token = ((energy_TF * chosen).sum(-1)[whole_T > 0] / whole_T[whole_T > 0]).mean()
        overall = energy_TF[chosen].sum() / energy_TF.sum()
        low, high = sorted((by_token, overall))  # the energy is weighted half by the one measure, half by the other
        assert low - 1e-4 <= ffn.energy <= high + 1e-4
        assert asked.target_energy - 1e-5 <= ffn.energy <= asked.target_energy + 0.01  # the smallest density for it
        assert ffn.predicted_density == pytest.approx(chosen.mean(), abs=1e-4)
        assert ffn.recall == pytest.approx((chosen & (energy_TF > 0)).sum() / (energy_TF > 0).sum(), abs=1e-4)
        assert ffn.density == pytest.approx((energy_TF > 0).mean(), abs=1e-4)


def test_threshold_zero_nearly_keeps_it_too(trained):
    asked, report, _ = trained
    for ffn in report.ffns:
        assert ffn.energy_at_zero == pytest.approx(asked.target_energy, abs=0.02)


def test_predictors_beat_chance(trained):
    _, report, _ = trained
    for (
        ffn
    ) in report.ffns:  # chance keeps as much energy as it predicts neurons, and is as precise as neurons are dense
        assert ffn.predicted_density < 0.75 * ffn.energy
        assert ffn.precision > 1.2 * ffn.density


def test_more_rank_needs_fewer_neurons(trained, text: Source):
    asked, narrow, _ = trained
    wide = train_predictors(replace(asked, out=None, rank=64))
    assert wide.mean("predicted_density") < narrow.mean("predicted_density")
    assert wide.size_share == pytest.approx(4 * narrow.size_share)


def test_predicted_mode_is_what_transformers_computes_with_the_mask(trained, sparse: Path):
    asked, report, predictors = trained
    rows = torch.from_numpy(calibration_rows(Checkpoint(sparse), asked.data, tokens=asked.tokens, context=64))
    rows = rows[-(len(rows) // 8) :]
    model = AutoModelForCausalLM.from_pretrained(sparse, trust_remote_code=True).eval()
    with torch.no_grad():
        exact = float(model(input_ids=rows, labels=rows).loss.exp())
    for index, layer in enumerate(model.model.layers):
        add_mask(layer.mlp, predictors.ffns[index][0])
    with torch.no_grad():
        masked = float(model(input_ids=rows, labels=rows).loss.exp())
    assert report.perplexity_exact == pytest.approx(exact, rel=1e-4)
    assert report.perplexity_predicted == pytest.approx(masked, rel=1e-3)


def add_mask(mlp: torch.nn.Module, predictor: Predictor) -> None:
    """Let the FFN keep only the neurons that are predicted."""
    inputs: list[torch.Tensor] = []
    mlp.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))

    def mask(_, h):
        chosen = torch.from_numpy(predictor.logits(inputs[-1].flatten(0, -2).numpy()) >= predictor.threshold)
        return (h[0] * chosen.view(h[0].shape),)

    mlp.down_proj.register_forward_pre_hook(mask)


def test_the_same_seed_gives_the_same_bytes(trained, tmp_path: Path):
    asked, _, _ = trained
    again = replace(asked, out=tmp_path / "again")
    train_predictors(again)
    for name in ("layer-00000.safetensors", "layer-00001.safetensors", "config.json"):
        assert (again.out / name).read_bytes() == (asked.out / name).read_bytes()
    other = replace(asked, out=tmp_path / "other", seed=1)
    train_predictors(other)
    assert (other.out / "layer-00001.safetensors").read_bytes() != (asked.out / "layer-00001.safetensors").read_bytes()


def test_the_folder_says_what_it_was_made_from(trained, sparse: Path):
    asked, report, predictors = trained
    assert predictors.model_fingerprint == Checkpoint(sparse).fingerprint
    assert predictors.report["data"] == [asked.data[0].path]
    assert predictors.report["tokens"] == 8192
    assert predictors.report["seed"] == 0
    assert predictors.report["ffns"] == [ffn.to_json() for ffn in report.ffns]


def test_predictors_of_another_model_are_refused(trained, make_sparse: Make):
    asked, _, predictors = trained
    other = Checkpoint(make_sparse(seed=5))
    with pytest.raises(TsconvertError) as error:
        load_predictors(asked.out, other.fingerprint)
    assert str(error.value) == (
        f"{asked.out}: these predictors were trained for another model (fingerprint"
        f" {predictors.model_fingerprint[:12]}, this one is {other.fingerprint[:12]}); train them for this one"
    )


def test_each_expert_has_its_own(sparse_moe: Path, text: Source, tmp_path: Path):
    asked = config(sparse_moe, text, out=tmp_path / "p")
    report = train_predictors(asked)
    predictors = load_predictors(tmp_path / "p")
    assert [len(experts) for experts in predictors.ffns] == [4, 4]
    assert [(ffn.layer, ffn.expert) for ffn in report.ffns] == [(layer, e) for layer in range(2) for e in range(4)]
    train_tokens = 8192 * 7 // 8
    for layer in range(2):
        assert sum(ffn.tokens for ffn in report.ffns[4 * layer : 4 * layer + 4]) == 2 * train_tokens  # top-2
    assert all(ffn.energy >= 0.9 - 1e-5 for ffn in report.used)
    assert not np.array_equal(predictors.ffns[0][0].fc1_RD, predictors.ffns[0][1].fc1_RD)


def test_an_expert_that_no_token_reaches_is_named(
    sparse_moe: Path, text: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = starve(sparse_moe, tmp_path / "starved", expert=2)
    report = train_predictors(config(folder, text, out=tmp_path / "p"))
    starved = {(ffn.layer, ffn.expert): ffn.reason for ffn in report.ffns if not ffn.used}
    assert starved[0, 2] == starved[1, 2] == "too few tokens"
    assert "layer 0, expert 2: 0 tokens reached it, too few for a predictor\n" in (capsys.readouterr().err)
    assert load_predictors(tmp_path / "p").ffns[0][2] is None
    assert "left to exact mode: too few tokens" in str(report)


def starve(folder: Path, out: Path, expert: int) -> Path:
    """A copy of a Mixtral whose router never chooses ``expert``: channel 0, large in every token, speaks against it."""
    shutil.copytree(folder, out)
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][:, 0] = 3
    for layer in range(2):
        router_ED = tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"]
        router_ED[:, 0] = 0
        router_ED[expert, 0] = -100
    safetensors.numpy.save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def test_one_layer_lives_at_a_time(make_sparse: Make, text: Source, monkeypatch: pytest.MonkeyPatch):
    alive: list[int] = []
    build = Stack.build
    refs: list[weakref.ref] = []

    def counting(self, index, context):
        alive.append(sum(ref() is not None for ref in refs))
        layer = build(self, index, context)
        refs.append(weakref.ref(layer.module))
        return layer

    monkeypatch.setattr(sweep_module.Stack, "build", counting)
    folder = make_sparse(num_hidden_layers=8)
    train_predictors(config(folder, text, tokens=1024, training=replace(QUICK, steps=2), target_energy=0.5))
    assert len(alive) == 16  # once to train, once to see the effect
    assert max(alive) <= 1  # the layer before, until its name is given to the next


def test_a_layers_inputs_are_held_once(sparse_moe: Path):
    rows = torch.randint(3, 4096, (16, 64))
    stream = Stream(Checkpoint(sparse_moe), rows)
    layer = stream.layer(0)
    stream.attend(layer)
    ffns = layer_ffns(layer, stream, 14 * 64)
    assert len({ffn.x_TD.data_ptr() for ffn in ffns}) == 1
    assert all((ffn.train < 14 * 64).all() and (ffn.calibration >= 14 * 64).all() for ffn in ffns)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    trained, sparse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, report, _ = trained
    config = replace(asked, out=tmp_path / "again")

    def killed(self, layer, ffns, save=CandidateStore.save):
        if layer == 1:
            raise KeyboardInterrupt
        save(self, layer, ffns)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CandidateStore, "save", killed)
        train_predictors(config)
    with pytest.raises(TsconvertError) as error:
        train_predictors(replace(config, resume=True, seed=1))
    assert str(error.value) == (
        f"{tmp_path / 'again.partial'}: was begun with other settings or another model; remove it or repeat those"
    )
    with pytest.raises(TsconvertError) as error:
        train_predictors(config)
    assert str(error.value) == (
        f"{tmp_path / 'again.partial'}: holds an unfinished run; go on with --resume, or remove it to start again"
    )
    made: list[int] = []
    train = layer_candidates.train_one
    monkeypatch.setattr(
        layer_candidates, "train_one", lambda ffn, *rest: (made.append(ffn.layer.index), train(ffn, *rest))[1]
    )
    again = train_predictors(replace(config, resume=True))
    assert made == [1]
    assert again.kl_divergence == report.kl_divergence
    assert sorted(file.name for file in config.out.iterdir()) == sorted(file.name for file in asked.out.iterdir())
    for file in asked.out.iterdir():
        assert (config.out / file.name).read_bytes() == file.read_bytes()


def test_divergence_and_agreement_are_transformers(trained, sparse: Path):
    asked, report, predictors = trained
    rows = torch.from_numpy(calibration_rows(Checkpoint(sparse), asked.data, tokens=asked.tokens, context=64))
    rows = rows[-(len(rows) // 8) :]
    model = AutoModelForCausalLM.from_pretrained(sparse, trust_remote_code=True).eval()
    with torch.no_grad():
        exact = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
        for index, layer in enumerate(model.model.layers):
            add_mask(layer.mlp, predictors.ffns[index][0])
        masked = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    divergence = (exact.exp() * (exact - masked)).sum(-1).mean()
    assert report.kl_divergence == pytest.approx(float(divergence), rel=1e-2)
    assert report.same_top == pytest.approx(float((exact.argmax(-1) == masked.argmax(-1)).float().mean()), abs=0.01)


def test_a_dry_run_writes_nothing(sparse: Path, text: Source, tmp_path: Path):
    found = train_predictors(config(sparse, text, out=tmp_path / "p", dry_run=True))
    assert found.cost is not None
    assert found.cost.memory_bytes == sum(found.cost.memory.values())
    assert list(tmp_path.iterdir()) == []
    assert str(found).startswith("memory 0.4")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_layers(tmp_path: Path):
    """Six layers more, of 67 MB each in float32, may cost next to nothing."""
    peak = {}
    for layers in (2, 8):
        shape = {"layers": layers, "width": 1024, "neurons": 4096, "heads": 8, "kv_heads": 2, "vocab": 4096}
        model = write_checkpoint(tmp_path / str(layers), activation="drelu", **shape)
        command = [sys.executable, "-m", "tsconvert", "predictors", str(model), "--out", str(tmp_path / f"p{layers}")]
        peak[layers] = watched([*command, "--rank", "32", "--steps", "2", "--tokens", "2K"]).peak_anonymous_bytes
    assert peak[8] < peak[2] + 40_000_000


def test_predictors_that_go_on_name_fewer_neurons(trained, sparse: Path, text: Source, tmp_path: Path):
    began, before, _ = trained
    out = began.out
    asked = config(sparse, text, rank=None, start=out, out=tmp_path / "on", training=replace(QUICK, steps=120))
    after = train_predictors(asked)
    assert [ffn.rank for ffn in after.ffns] == [ffn.rank for ffn in before.ffns]
    assert sum(ffn.predicted_density for ffn in after.ffns) < sum(ffn.predicted_density for ffn in before.ffns)
    still = train_predictors(replace(asked, out=None, training=replace(QUICK, steps=1, learning_rate=1e-9)))
    for old, new in zip(before.ffns, still.ffns, strict=True):  # nothing learned: the very same predictors
        assert new.predicted_density == pytest.approx(old.predicted_density, rel=1e-6)


def test_predictors_of_another_shape_are_no_start(trained, make_sparse: Make, text: Source):
    out = trained[0].out
    other = make_sparse(num_hidden_layers=3)
    sentence = (
        rf"{out}: its predictors are for another shape \(layers, FFNs a layer, width, neurons: \(2, 1, 64, 128\)\),"
        r" this model has \(3, 1, 64, 128\); start from predictors of this model$"
    )
    with pytest.raises(TsconvertError, match=sentence):
        train_predictors(config(other, text, rank=None, start=out))
    with pytest.raises(TsconvertError, match=r"they have; leave --rank and --budget away$"):
        config(other, text, rank=8, start=out)
