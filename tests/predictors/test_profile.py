import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.file import load_profile
from tsconvert.predictors.profile.profile import profile
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sources import Source

Make = Callable[..., Path]


def counted_by_transformers(folder: Path, text: Source, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts [L, E, F] and tokens [L, E] from the saved modelling code, its own forward, hooks on what it computes."""
    rows = torch.from_numpy(calibration_rows(Checkpoint(folder), (text,), tokens=tokens, context=64))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    config = model.config
    experts = getattr(config, "num_local_experts", 1)
    counts = torch.zeros(config.num_hidden_layers, experts, config.intermediate_size, dtype=torch.int64)
    seen = torch.zeros(config.num_hidden_layers, experts, dtype=torch.int64)

    def dense(index):
        def hook(module, inputs):
            fires = inputs[0].flatten(0, -2) != 0  # what down_proj is given
            counts[index, 0] += fires.sum(0)
            seen[index, 0] += len(fires)

        return hook

    def moe(index):
        def hook(module, inputs):
            x, choice, _ = inputs
            for expert in range(experts):
                taken = x[(choice == expert).any(-1)]
                gate, up = (taken @ module.gate_up_proj[expert].T).chunk(2, -1)
                counts[index, expert] += ((gate > 0) & (up > 0)).sum(0)
                seen[index, expert] += len(taken)

        return hook

    for index, layer in enumerate(model.model.layers):
        if experts > 1:
            layer.mlp.experts.register_forward_pre_hook(moe(index))
        else:
            layer.mlp.down_proj.register_forward_pre_hook(dense(index))
    with torch.no_grad():
        model(input_ids=rows)
    return counts, seen


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_counts_are_those_of_transformers_own_forward(make_sparse: Make, text: Source, family: str):
    folder = make_sparse(family)
    found = profile(ProfileConfig(model=str(folder), data=(text,), tokens=2048, context=64))
    counts, seen = counted_by_transformers(folder, text, 2048)
    ours = torch.from_numpy(np.stack([layer.counts_CEF.sum(0) for layer in found.layers]))
    assert [layer.tokens_CE.sum(0).tolist() for layer in found.layers] == seen.tolist()
    assert (ours - counts).abs().sum() <= 1e-4 * counts.sum()  # logits next to zero may round either way
    for layer, count, tokens in zip(found.layers, counts, seen, strict=True):
        assert layer.density == pytest.approx(float(count.sum()) / float(tokens.sum() * count.shape[1]), rel=1e-3)
        assert layer.gate_density > layer.density
        assert list(layer.density_percentiles.values()) == sorted(layer.density_percentiles.values())
        assert 0 < layer.energy98 <= layer.density


def test_the_union_grows_and_begins_at_the_density(sparse: Path, text: Source):
    found = profile(ProfileConfig(model=str(sparse), data=(text,), tokens=1024, context=64))
    for layer in found.layers:
        shares = list(layer.union.values())
        assert list(layer.union) == [1, 2, 4, 8, 16, 32, 64]
        assert shares[0] == pytest.approx(layer.density)
        assert shares == sorted(shares)
        assert shares[-1] <= 1


def test_corpora_are_told_apart(sparse: Path, text: Source, tmp_path: Path):
    other = tmp_path / "numbers.txt"
    other.write_text(" ".join(str(n * n) for n in range(3000)))
    data = (text, Source(path=str(other), weight=3.0))
    both = profile(ProfileConfig(model=str(sparse), data=data, tokens=4096, context=64))
    alone = profile(ProfileConfig(model=str(sparse), data=(text,), tokens=1024, context=64))
    assert both.tokens == (1024, 3072)
    assert np.array_equal(both.layers[0].counts_CEF[0], alone.layers[0].counts_CEF[0])
    assert 0 < both.layers[0].hot_overlap(0, 1) < 1
    assert both.layers[0].hot_overlap(0, 0) == 1
    assert "overlap" in str(both)
    assert len(both.to_json()["layers"][0]["density_by_corpus"]) == 2


def test_the_file_round_trips_and_the_same_run_gives_the_same_bytes(sparse: Path, text: Source, tmp_path: Path):
    config = {"model": str(sparse), "data": (text,), "tokens": 512, "context": 64}
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    made = profile(ProfileConfig(out=one, **config))
    profile(ProfileConfig(out=two, **config))
    assert one.read_bytes() == two.read_bytes()
    read = load_profile(one, Checkpoint(sparse).fingerprint)
    assert read.to_json() | {"elapsed_s": 0} == made.to_json() | {"elapsed_s": 0}
    assert np.array_equal(read.counts(1), made.counts(1))
    json.dumps(read.to_json())
    with pytest.raises(TsconvertError, match="exists already"):
        profile(ProfileConfig(out=one, **config))


def test_another_models_profile_is_refused(sparse: Path, text: Source, tmp_path: Path):
    path = tmp_path / "p.safetensors"
    found = profile(ProfileConfig(model=str(sparse), data=(text,), tokens=512, context=64, out=path))
    with pytest.raises(TsconvertError) as error:
        load_profile(path, "0123456789abcdef")
    assert str(error.value) == (
        f"{path}: this profile is of another model (fingerprint {found.model_fingerprint[:12]}, this one is"
        " 0123456789ab); make one of this model"
    )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TsconvertError, match="not a profile that can be read"):
        load_profile(path)


def test_powerinfer_activations(make_sparse: Make, text: Source, tmp_path: Path):
    folder = make_sparse(intermediate_size=256, num_hidden_layers=11)
    out = tmp_path / "activation"
    found = profile(ProfileConfig(model=str(folder), data=(text,), tokens=512, context=64, powerinfer_dir=out))
    assert {path.name for path in out.iterdir()} == {f"activation_{i}.pt" for i in range(11)}
    for i in range(11):
        counts_F = torch.load(out / f"activation_{i}.pt", weights_only=True)
        assert counts_F.shape == (256,)
        assert np.array_equal(counts_F.numpy(), found.counts(i))


def test_what_cannot_be_profiled_says_why(dense: Path, sparse: Path, sparse_moe: Path, text: Source, tmp_path: Path):
    with pytest.raises(TsconvertError) as error:
        profile(ProfileConfig(model=str(dense)))
    assert str(error.value) == (
        f"{dense}: is swiglu, where every neuron fires for every token; make it sparse with `tsconvert relufy` first"
    )
    with pytest.raises(TsconvertError) as error:
        profile(ProfileConfig(model=str(sparse_moe), powerinfer_dir=tmp_path / "a"))
    assert str(error.value) == (
        f"--powerinfer-dir: {sparse_moe} has experts, and PowerInfer's solver takes dense FFNs only; leave it out"
    )
    with pytest.raises(TsconvertError) as error:
        profile(ProfileConfig(model=str(sparse), powerinfer_dir=tmp_path / "a"))
    assert str(error.value) == (
        "--powerinfer-dir: 128 neurons, and PowerInfer's solver wants a multiple of 256; leave it out"
    )


def test_reglu_is_accepted(make_sparse: Make, text: Source):
    found = profile(ProfileConfig(model=str(make_sparse(activation="reglu")), data=(text,), tokens=512, context=64))
    assert found.layers[0].density == pytest.approx(found.layers[0].gate_density)
