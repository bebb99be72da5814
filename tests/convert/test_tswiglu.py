"""`relufy --activation tswiglu`: SwiGLU stays, and the neurons that would add little are silent."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.local import sweep
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.files.gguf.file import GgufFile
from tsconvert.model.layers import Layer
from tsconvert.model.modeling_turbosparse import activate
from tsconvert.model.tensor_names import Place
from tsconvert.predictors.profile.config import ProfileConfig
from tsconvert.predictors.profile.profile import profile
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load
from tsconvert.text.packing import calibration_rows


def converted(out: Path, model: str, sparsity: float, up_passes: float | None, **more: object) -> Path:
    training = LocalRecovery(target_sparsity=sparsity, up_passes=up_passes)
    relufy(
        RelufyConfig(model=model, out=out, activation="tswiglu", training=training, tokens=8192, context=256, **more)
    )
    return out


@pytest.fixture(scope="module", params=[("tiny-mistral", 1.0), *((name, 0.48) for name in embedded.NAMES)], ids=str)
def silenced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An embedded model's name, and it with thresholds for 75 % zeros, not trained."""
    out = tmp_path_factory.mktemp("tswiglu") / "model"
    name, up_passes = request.param
    return name, converted(out, name, 0.75, up_passes, recover="none")


def rows() -> torch.Tensor:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(embedded.folder("tiny-mistral") / "tokenizer.json"))
    ids = tokenizer.encode(embedded.text("heldout.txt").read_text()[:20_000]).ids
    return torch.tensor(ids[: len(ids) // 256 * 256]).view(-1, 256)[:8]


def loss_and_zeros(model: torch.nn.Module) -> tuple[float, float]:
    kept: list[float] = []
    for layer in model.model.layers:
        down = getattr(layer.mlp, "down_proj", None)
        if down is not None:
            down.register_forward_pre_hook(lambda _, inputs: kept.append(float((inputs[0] == 0).float().mean())))
    with torch.no_grad():
        loss = float(model(rows(), labels=rows()).loss)
    return loss, float(np.mean(kept)) if kept else 0.0


def test_without_training_it_stays_near_the_dense_model(silenced: tuple[str, Path]):
    name, folder = silenced
    dense = AutoModelForCausalLM.from_pretrained(embedded.folder(name), dtype=torch.float32).eval()
    sparse = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    base, _ = loss_and_zeros(dense)
    loss, zeros = loss_and_zeros(sparse)
    assert loss - base < 0.25
    if name == "tiny-mistral":
        assert zeros == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("kind", ["tswiglu", "tgeglu"])
@pytest.mark.parametrize("up_threshold", [0.0, 0.7])
def test_values_and_slopes_are_those_of_the_neurons_that_fire(kind: str, up_threshold: float):
    """Beside comparisons and a product, in double precision: others add nothing, and learn nothing."""
    torch.manual_seed(0)
    scale_F = torch.rand(40, dtype=torch.float64) + 0.5
    ours, plain = ([torch.randn(30, 40, dtype=torch.float64).requires_grad_(True) for _ in range(2)] for _ in range(2))
    for mine, other in zip(ours, plain, strict=True):
        other.data.copy_(mine.data)
    h_TF = activate(*ours, kind, 0.2, up_threshold, scale_F)
    curve = torch.nn.functional.silu if kind == "tswiglu" else lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    wanted_TF = curve(plain[0]) * plain[1]
    wanted_TF = wanted_TF * (wanted_TF.abs() > 0.2) * (plain[1].abs() * scale_F > up_threshold)
    torch.testing.assert_close(h_TF, wanted_TF, rtol=0, atol=0)
    assert 0.2 < float((h_TF == 0).double().mean()) < 0.9
    for found in (h_TF, wanted_TF):
        found.square().sum().backward()
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=0)


def test_the_scales_leave_the_function_as_it_is(silenced: tuple[str, Path], tmp_path: Path):
    name, folder = silenced
    config = json.loads((folder / "config.json").read_text())
    assert all(value > 0 for value in config["ffn_thresholds"])
    ours, theirs = load_file(folder / "model.safetensors"), load_file(embedded.folder(name) / "model.safetensors")
    up = next(key for key in theirs if "up_proj" in key or ".w3." in key)
    down = up.replace("up_proj", "down_proj").replace(".w3.", ".w2.")
    assert not torch.equal(ours[up], theirs[up])
    product = ours[up].double().T @ ours[down].double().T
    wanted = theirs[up].double().T @ theirs[down].double().T
    assert float((product - wanted).norm() / wanted.norm()) < 0.01  # both stored in the type of the source


def test_llama_cpp_runs_it_as_swiglu(silenced: tuple[str, Path], tmp_path: Path):
    """Without thresholds, which it does not have; verify knows, and the report says so."""
    out = tmp_path / "dense.gguf"
    report = export_unverified(ExportConfig(model=str(silenced[1]), out=out, type_name="F32", target="llama.cpp"))
    assert any(note.startswith("llama.cpp has no thresholds") for note in report.notes)
    verify(VerifyConfig(model=str(silenced[1]), file=out)).require()
    model = AutoModelForCausalLM.from_pretrained(silenced[1], dtype=torch.float32, trust_remote_code=True).eval()
    for layer in model.model.layers:
        ffn = getattr(layer.mlp, "experts", layer.mlp)
        ffn.threshold = ffn.up_threshold = 0.0
    ids = rows()[0, :48]
    with torch.no_grad():
        wanted_TV = model(ids[None]).logits[0].numpy()
    with load(out, mode="dense", context=64, cache_type="F32") as runner:
        assert np.abs(runner.logits(ids.tolist()) - wanted_TV).max() < 1e-4 * wanted_TV.std()


def test_training_the_whole_model_brings_it_nearer(tmp_path: Path):
    """One whose ups have no threshold yet gets one then."""
    start = converted(tmp_path / "start", "tiny-mistral", 0.88, 1.0, recover="none")
    report = relufy(
        RelufyConfig(
            model=str(start), teacher="tiny-mistral", out=tmp_path / "full", activation="tswiglu", recover="full",
            tokens=8192, context=256, training=LocalRecovery(target_sparsity=0.88, up_passes=0.3),
            full=FullRecovery(tokens=32_768, evaluations=2),
        )
    )  # fmt: skip
    assert report.full is not None
    first, last = report.full.evaluations[0], report.full.evaluations[-1]
    assert last.perplexity < first.perplexity
    assert sum(report.full.density) / 3 == pytest.approx(0.12, abs=0.02)
    config = json.loads((tmp_path / "full/config.json").read_text())
    assert len(config["ffn_thresholds"]) == len(config["ffn_up_thresholds"]) == 3
    scales = scales_of(tmp_path / "full")
    assert config["ffn_up_scaled"]
    assert len(scales) == 3
    assert all(scale.min() > 0 and scale.std() > 0.1 * scale.mean() for scale in scales.values())
    passing = passing_ups(tmp_path / "full")
    assert np.mean(passing) == pytest.approx(0.3, abs=0.05)


def scales_of(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {name: weight for name, weight in weights.items() if name.endswith("up_scale")}


def passing_ups(folder: Path) -> list[float]:
    """The share of each layer's neurons whose up is over its threshold."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    kept: list[float] = []
    for layer in model.model.layers:
        mlp = layer.mlp

        def look(_: object, __: object, up: torch.Tensor, mlp: torch.nn.Module = mlp) -> None:
            kept.append(float((up.abs() * mlp.up_scale > mlp.up_threshold).float().mean()))

        mlp.up_proj.register_forward_hook(look)
    with torch.no_grad():
        model(rows()[:2])
    return kept


@pytest.mark.parametrize(("sparsity", "up_passes", "passes"), [(0.75, 0.48, 0.48), (0.9, None, 0.6)])
def test_a_neuron_fires_by_what_it_adds_and_by_what_its_up_promises(
    sparsity: float, up_passes: float | None, passes: float, tmp_path: Path
):
    """By the dense model's own numbers: |h_j| |down_j|, and |u_j| |down_j| times the usual size of silu(g_j)."""
    sparse_folder = converted(tmp_path / "sparse", "tiny-mistral", sparsity, up_passes, recover="none", dtype="F32")
    dense, sparse = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
        for folder in (embedded.folder("tiny-mistral"), sparse_folder)
    )
    kept: list[torch.Tensor] = []
    mlps = [model.model.layers[0].mlp for model in (dense, sparse)]  # whose inputs are the same
    mlps[0].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(0, 1)))
    mlps[1].down_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].flatten(0, 1) != 0))
    trained_NS = torch.from_numpy(calibration_rows(Checkpoint(sparse_folder), (), tokens=8192, context=256, seed=0))
    with torch.no_grad():
        for model in (dense, sparse):
            model(trained_NS)
        x_TD, fired_TF = kept
        gate_TF, up_TF = torch.nn.functional.silu(mlps[0].gate_proj(x_TD)), mlps[0].up_proj(x_TD)
        down_F = mlps[0].down_proj.weight.norm(dim=0)
        adds_TF = (gate_TF * up_TF).abs() * down_F
        usual_F = gate_TF.square().mean(0).sqrt()
    scale_F = scales_of(sparse_folder)["model.layers.0.mlp.up_scale"]
    assert float((scale_F / usual_F - 1).abs().median()) < 0.05  # it was measured on 15 of 16 of these rows
    promises_TF = up_TF.abs() * down_F * scale_F
    least, least_up = adds_TF[fired_TF].min(), promises_TF[fired_TF].min()
    both_TF = (adds_TF >= least) & (promises_TF >= least_up)
    assert float((both_TF != fired_TF).float().mean()) < 1e-4
    assert float((promises_TF >= least_up).float().mean()) == pytest.approx(passes, abs=0.02)


@pytest.mark.parametrize("name", embedded.NAMES)
def test_thresholds_can_be_set_anew(name: str, tmp_path: Path):
    """With an up threshold and without, on a model that has others already; no weight changes."""
    folders = {share: converted(tmp_path / f"{share}", name, 0.75, share, recover="none") for share in (1.0, 0.48)}
    configs, weights = {}, {}
    for before, after in ((1.0, 0.48), (0.48, 1.0)):
        out = converted(tmp_path / f"to-{after}", str(folders[before]), 0.75, after, recover="none")
        for key, folder in (("asked", folders[after]), ("anew", out)):
            configs[key] = json.loads((folder / "config.json").read_text())
            weights[key] = load_file(folder / "model.safetensors")
        assert (
            configs["asked"].get("ffn_up_scaled")
            == configs["anew"].get("ffn_up_scaled")
            == (True if after < 1 else None)
        )
        for key in ("ffn_thresholds", "ffn_up_thresholds"):
            assert configs["anew"].get(key, []) == pytest.approx(configs["asked"].get(key, []), rel=0.02)
        assert weights["anew"].keys() == weights["asked"].keys()
        for tensor, weight in weights["anew"].items():
            assert torch.allclose(weight.float(), weights["asked"][tensor].float(), rtol=0.05, atol=0.0)
            assert tensor.endswith("up_scale") or torch.equal(weight, weights["asked"][tensor])


def test_a_resumed_run_has_the_scales_of_finished_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    converted(tmp_path / "whole", "tiny-mixtral", 0.75, 0.48, recover="none")
    real = sweep.judge_layer

    def dies(layer: Layer, *rest: object) -> object:
        if layer.index == 2:
            raise KeyboardInterrupt
        return real(layer, *rest)

    monkeypatch.setattr(sweep, "judge_layer", dies)
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "resumed", "tiny-mixtral", 0.75, 0.48, recover="none")
    monkeypatch.undo()
    converted(tmp_path / "resumed", "tiny-mixtral", 0.75, 0.48, recover="none", resume=True)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_transformers_saves_what_it_loaded(silenced: tuple[str, Path], tmp_path: Path):
    _, folder = silenced
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    ours, theirs = Checkpoint(folder), Checkpoint(tmp_path / "saved")
    assert theirs.spec == ours.spec
    assert theirs.places == ours.places
    assert all(np.array_equal(theirs.array(place), ours.array(place)) for place in ours.places)


def test_a_file_has_the_scales_in_the_order_of_its_neurons(silenced: tuple[str, Path], tmp_path: Path):
    _, folder = silenced
    counts = tmp_path / "profile.safetensors"
    profile(ProfileConfig(model=str(folder), out=counts, tokens=1024, context=128))
    out = tmp_path / "sparse.gguf"
    export_unverified(ExportConfig(model=str(folder), out=out, type_name="Q8_0", profile=counts))
    verify(VerifyConfig(model=str(folder), file=out)).require()
    file, spec = GgufFile(out), Checkpoint(folder).spec
    assert ("up_scale" in file.metadata.get("turbosparse.features", [])) == spec.up_scaled
    assert file.metadata["turbosparse.format_version"] == 1 + spec.up_scaled
    if not spec.up_scaled:
        return
    tensor = file.tensors["blk.1.ffn_up_scale.weight"]
    assert tensor.type_name == "F32"
    order = file.tensors["blk.1.ffn_order"].raw.view("<i4").reshape(tensor.shape).astype(np.int64)
    found = np.take_along_axis(Checkpoint(folder).array(Place("ffn_up_scale", 1)), order, -1)
    assert np.array_equal(tensor.to_float32(), found)
    raw = tensor.raw.copy().view("<f4")
    raw[7] *= 1.5  # only verify can tell
    data = bytearray(out.read_bytes())
    data[tensor.offset : tensor.offset + tensor.size_bytes] = raw.tobytes()
    out.write_bytes(data)
    failures = verify(VerifyConfig(model=str(folder), file=out)).failures
    assert "blk.1.ffn_up_scale.weight" in [failure.what for failure in failures]


def test_where_all_ups_pass_the_activations_alone_decide(tmp_path: Path):
    for up_passes in (1.0, None):
        out = converted(tmp_path / f"{up_passes}", "tiny-mistral", 0.9, up_passes, recover="none")
        config = json.loads((out / "config.json").read_text())
        assert [value > 0 for value in config.get("ffn_up_thresholds", [0] * 3)] == [up_passes is None] * 3
        weights = load_file(out / "model.safetensors")
        norm_F = weights["model.layers.1.mlp.down_proj.weight"].float().norm(dim=0)
        assert float(norm_F.std() / norm_F.mean()) < 0.01  # |h| is then what a neuron adds


def test_it_needs_a_target(tmp_path: Path):
    with pytest.raises(TsconvertError, match=r"^--activation tswiglu: say how many neurons"):
        RelufyConfig(model="tiny-mistral", out=tmp_path / "o", activation="tswiglu")
    with pytest.raises(TsconvertError, match=r"^--activation tswiglu: thresholds silence"):
        training = LocalRecovery(target_sparsity=0.9, silenced_by="l1")
        RelufyConfig(model="tiny-mistral", out=tmp_path / "o", activation="tswiglu", training=training)
    for up_passes in (0.05, 1.1):
        with pytest.raises(TsconvertError, match=r"^--up-passes .*: it must lie between"):
            LocalRecovery(target_sparsity=0.9, up_passes=up_passes)


def test_sparse_models_of_other_kinds_are_refused(silenced: tuple[str, Path], tmp_path: Path):
    name, folder = silenced
    out = tmp_path / "out"
    with pytest.raises(TsconvertError) as caught:
        relufy(RelufyConfig(model=str(folder), teacher=name, out=out, recover="none"))
    assert str(caught.value) == (
        f"{folder}: is tswiglu already; give --activation tswiglu, or convert the dense model that it came from to"
        " drelu"
    )
    relufy(RelufyConfig(model=name, out=tmp_path / "drelu", recover="none", align=False))
    for recover in ("none", "full"):
        with pytest.raises(TsconvertError) as caught:
            training = LocalRecovery(target_sparsity=0.8)
            relufy(
                RelufyConfig(
                    model=str(tmp_path / "drelu"), teacher=name, out=out, activation="tswiglu", recover=recover,
                    training=training,
                )
            )  # fmt: skip
        assert str(caught.value) == (
            f"{tmp_path / 'drelu'}: --activation tswiglu keeps SwiGLU and this model is drelu already; convert the"
            " dense model that it came from"
        )
