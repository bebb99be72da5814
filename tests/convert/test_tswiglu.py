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
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.verify.compare import verify
from tsconvert.evaluate.verify.config import VerifyConfig
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load


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
    report = relufy(
        RelufyConfig(
            model="tiny-mistral", out=tmp_path / "full", activation="tswiglu", recover="full", tokens=8192, context=256,
            training=LocalRecovery(target_sparsity=0.88, up_passes=0.3),
            full=FullRecovery(tokens=32_768, evaluations=2),
        )
    )  # fmt: skip
    assert report.full is not None
    first, last = report.full.evaluations[0], report.full.evaluations[-1]
    assert last.perplexity < first.perplexity
    assert sum(report.full.density) / 3 == pytest.approx(0.12, abs=0.02)
    config = json.loads((tmp_path / "full/config.json").read_text())
    assert len(config["ffn_thresholds"]) == len(config["ffn_up_thresholds"]) == 3


def test_where_all_ups_pass_the_activations_alone_decide(tmp_path: Path):
    for up_passes in (1.0, None):
        out = converted(tmp_path / f"{up_passes}", "tiny-mistral", 0.8, up_passes, recover="none")
        config = json.loads((out / "config.json").read_text())
        assert [value > 0 for value in config.get("ffn_up_thresholds", [0] * 3)] == [up_passes is None] * 3
    weights = load_file(tmp_path / "1.0/model.safetensors")
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
