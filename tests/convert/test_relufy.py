import json
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
from tsconvert.convert.config.masked import JointConfig
from tsconvert.convert.local import sweep
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.sweep import Stream
from tsconvert.model.tensor_names import Place
from tsconvert.text.sources import Source

Make = Callable[..., Path]
SHORT = LocalRecovery(steps=20, batch_tokens=256, learning_rate=3e-3)


def config(model: Path, out: Path, **fields: object) -> RelufyConfig:
    return RelufyConfig(model=str(model), out=out, **({"tokens": 4096, "context": 128, "training": SHORT} | fields))


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_recovery_and_alignment_every_byte_is_copied(make_checkpoint: Make, tmp_path: Path, family: str, dtype):
    folder = make_checkpoint(family, dtype=dtype)
    relufy(config(folder, tmp_path / "out", recover="none", align=False, max_shard_bytes=300_000))
    before, after = Checkpoint(folder), Checkpoint(tmp_path / "out")
    assert len(weights(tmp_path / "out")) > 1
    assert before.places == after.places
    assert all(np.array_equal(before.raw(place), after.raw(place)) for place in before.places)
    assert after.spec == replace(before.spec, activation="drelu")


def test_dtype_converts(make_checkpoint: Make, tmp_path: Path):
    folder = make_checkpoint("mistral", dtype=torch.float32)
    relufy(config(folder, tmp_path / "out", recover="none", align=False, dtype="BF16"))
    before, after = Checkpoint(folder), Checkpoint(tmp_path / "out")
    for place in before.places:
        theirs = torch.from_numpy(before.array(place).copy()).bfloat16().float().numpy()
        assert np.array_equal(after.array(place), theirs)


def test_a_rank_beyond_the_ffns_is_refused_before_the_work(make_checkpoint: Make, tmp_path: Path):
    joint = JointConfig(out=tmp_path / "predictors", rank=100_000)
    for asked in ({"recover": "local"}, {"recover": "full"}, {"dry_run": True}):
        with pytest.raises(TsconvertError) as caught:
            relufy(config(make_checkpoint("mistral"), tmp_path / "out", predictors=joint, **asked))
        assert str(caught.value) == "--rank 100000: the FFNs are 64 wide, of 128 neurons; give at most 128"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_local_recovery_brings_each_layer_closer_to_the_dense_one(make_checkpoint: Make, tmp_path: Path, family: str):
    report = relufy(config(make_checkpoint(family), tmp_path / "out", tokens=32_768))
    assert all(layer.error_after < 0.8 * layer.error_before for layer in report.layers)
    assert report.energy_kept is not None
    assert report.energy_kept[1] > report.energy_kept[0]
    provenance = json.loads((tmp_path / "out" / "tsconvert.json").read_text())
    assert provenance["report"]["perplexity"] == report.perplexity
    experts = 4 if family == "mixtral" else 1
    seen = [sum(layer.expert_tokens) for layer in report.layers]
    train_tokens = report.tokens - 16 * 128
    assert all(len(layer.expert_tokens) == experts for layer in report.layers)
    assert seen == [train_tokens * (2 if family == "mixtral" else 1)] * 2


def test_the_penalty_reaches_the_sparsity_asked_for(dense: Path, tmp_path: Path):
    training = replace(SHORT, steps=120, target_sparsity=0.9)
    report = relufy(config(dense, tmp_path / "out", training=training, tokens=16_384))
    assert all(0.07 < layer.density < 0.13 for layer in report.layers)


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(dense: Path, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        relufy(config(dense, tmp_path / name, seed=seed))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_ends_in_the_same_bytes(make_checkpoint: Make, tmp_path: Path, monkeypatch, dtype):
    folder = make_checkpoint("mistral", num_hidden_layers=3, dtype=dtype)
    relufy(config(folder, tmp_path / "whole"))
    real = sweep.recover_layer

    def dies(layer, *rest):
        if layer.index == 2:
            raise KeyboardInterrupt
        return real(layer, *rest)

    monkeypatch.setattr(sweep, "recover_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        relufy(config(folder, tmp_path / "resumed"))
    assert not (tmp_path / "resumed").exists()
    partial = tmp_path / "resumed.partial"
    with pytest.raises(TsconvertError) as caught:
        relufy(config(folder, tmp_path / "resumed", seed=3))
    assert str(caught.value) == (
        f"{partial}: holds an unfinished run; go on with --resume, or remove it to start again"
    )
    trained = []
    monkeypatch.setattr(sweep, "recover_layer", lambda layer, *r: trained.append(layer.index) or real(layer, *r))
    relufy(config(folder, tmp_path / "resumed", resume=True))
    assert trained == [2]
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")


def test_a_run_with_other_settings_is_not_resumed(dense: Path, tmp_path: Path, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "recover_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        relufy(config(dense, tmp_path / "out"))
    with pytest.raises(TsconvertError) as caught:
        relufy(config(dense, tmp_path / "out", resume=True, seed=5))
    partial = tmp_path / "out.partial"
    assert str(caught.value) == f"{partial}: was begun with other settings or another model; remove it or repeat those"


def test_what_is_sparse_already_is_left_alone_but_can_be_recovered_further(dense: Path, tmp_path: Path):
    relufy(config(dense, tmp_path / "a"))
    with pytest.raises(TsconvertError) as caught:
        relufy(config(tmp_path / "a", tmp_path / "b"))
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: is drelu already, nothing is left to do; --teacher DENSE recovers it further"
    )
    second = relufy(config(tmp_path / "a", tmp_path / "b", teacher=str(dense)))
    assert all(layer.error_after < layer.error_before for layer in second.layers)


@pytest.fixture
def starved(make_checkpoint: Make) -> Path:
    """A Mixtral whose router never chooses expert 4: the others' logits come in pairs of one sign."""
    folder = make_checkpoint("mixtral", num_local_experts=5)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, weight_ED in tensors.items():
        if name.endswith("gate.weight"):
            weight_ED[1], weight_ED[2], weight_ED[3], weight_ED[4] = weight_ED[0], -weight_ED[0], -weight_ED[0], 0
    save_file(tensors, file, {"format": "pt"})
    return folder


def test_a_starved_expert_is_named_and_trained_on_the_routers_next_best(starved: Path, tmp_path: Path, capsys):
    plain = relufy(config(starved, tmp_path / "plain"))
    assert [layer.expert_tokens[4] for layer in plain.layers] == [0, 0]
    assert "experts that no token reached: 4 of layer 0, 4 of layer 1; --min-expert-tokens" in str(plain)
    capsys.readouterr()
    relufy(config(starved, tmp_path / "fed", min_expert_tokens=500))
    assert "layer 1: expert 4 saw 0 tokens; trained on the router's next best up to 500" in capsys.readouterr().err
    dense, left, fed = (Checkpoint(folder) for folder in (starved, tmp_path / "plain", tmp_path / "fed"))
    place = Place("ffn_gate", 0, 4)
    assert np.array_equal(left.array(place), dense.array(place))
    rows = torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
    target, before, after = (expert_outputs(model, rows) for model in (dense, left, fed))
    assert (after - target).square().sum() < 0.95 * (before - target).square().sum()


def expert_outputs(model: Checkpoint, rows: torch.Tensor) -> torch.Tensor:
    """What expert 4 of layer 0 gives for inputs like those of ``rows``, all in SwiGLU's layer but the FFN."""
    stream = Stream(model, rows)
    layer = stream.layer(0)
    x_TD = torch.nn.functional.rms_norm(stream.hidden_NSD.flatten(0, 1), (stream.hidden_NSD.shape[2],))
    with torch.no_grad():
        return layer.activations(x_TD, 4) @ layer.ffn_weights(4)[2].T


def test_a_dry_run_writes_nothing(dense: Path, tmp_path: Path):
    report = relufy(config(dense, tmp_path / "out", dry_run=True))
    assert report.size_bytes == Checkpoint(dense).size_bytes
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"min_expert_tokens": 10**6},
            "--min-expert-tokens 1000000: the text has 3840 tokens to train on; give more --tokens",
        ),
        (
            {"min_expert_tokens": 10**6, "recover": "none"},
            "layer 0: expert 0 saw 3840 tokens, fewer than --min-expert-tokens 1000000; give more --tokens or other",
        ),
        ({"activation": "gelu"}, "activation is 'gelu'; choose one of drelu, reglu"),
        (
            {"data": (Source(path="no-such-file.txt"),)},
            "--data no-such-file.txt: no such file or folder; look at the path",
        ),
        ({"data": (Source(path="./no/such"),)}, "--data ./no/such: no such file or folder; look at the path"),
        ({"model": "./nosuch"}, "./nosuch: no such folder or file; give a checkpoint folder, a GGUF file, a hub id"),
        ({"tokens": 100}, "--tokens 100: 1 sequence of 128 tokens; ask for at least two"),
        ({"training": LocalRecovery(steps=5, learning_rate=1e30)}, "the loss is"),
    ],
)
def test_bad_input_is_said_in_one_sentence(dense: Path, tmp_path: Path, fields: dict, sentence: str):
    with pytest.raises(TsconvertError) as caught:
        relufy(replace(config(dense, tmp_path / "out"), **fields))
    assert sentence in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_target_sparsity_that_is_no_share_is_refused():
    with pytest.raises(TsconvertError, match="it must lie between 0 and 1"):
        LocalRecovery(target_sparsity=90)


@pytest.mark.parametrize("activation", ["drelu", "reglu", "tswiglu"])
def test_who_converts_geglu_hears_of_tswiglu(make_family: Make, tmp_path: Path, capsys, activation: str):
    model = make_family("gemma3_text")
    training = LocalRecovery(target_sparsity=0.5 if activation == "tswiglu" else None)
    fields = {"activation": activation, "recover": "none", "training": training, "tokens": 1024, "context": 64}
    relufy(config(model, tmp_path / "out", **fields))
    said = [line for line in capsys.readouterr().err.splitlines() if "GeGLU" in line]
    sentence = (
        f"{model}: GeGLU becomes {activation}, and training has to make up for it; --activation tswiglu, which keeps"
        " it, is nearer to the dense model after the same time"
    )
    assert said == [sentence] * (activation != "tswiglu")
