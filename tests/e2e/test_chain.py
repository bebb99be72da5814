"""The README's chain on the embedded models, command by command, as a user types it but shorter."""

import json
import re
import shlex
from pathlib import Path

import click
import numpy as np
import pytest

import tsconvert
from tsconvert import cli, embedded
from tsconvert.convert.config import RelufyConfig
from tsconvert.quant.export import ExportConfig


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """What the command prints with --json."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, arguments), "--json"], prog_name="tsconvert")
        raise SystemExit(0)
    captured = capsys.readouterr()
    assert not stop.value.code, captured.err
    return json.loads(captured.out)


@pytest.mark.parametrize("model", ["tiny-mistral", "tiny-mixtral"])
def test_the_chain(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: str):
    sparse, predictors, file = tmp_path / "sparse", tmp_path / "predictors", tmp_path / "sparse.gguf"
    relufied = call(capsys, "relufy", model, "--out", sparse, "--tokens", "8K", "--steps", 20, "--batch-tokens", 1024)
    assert relufied["perplexity"] < 2 * relufied["dense_perplexity"]
    call(capsys, "profile", sparse, "--tokens", "4K", "--out", tmp_path / "profile.safetensors")
    call(capsys, "predictors", sparse, "--out", predictors, "--tokens", "8K", "--rank", 32, "--steps", 60)
    exported = call(capsys, "export-gguf", sparse, "--predictors", predictors, "--out", file)
    assert (exported["target"], exported["architecture"]) == ("sparse", "turbosparse")

    scores = {
        mode: call(capsys, "eval", file, "--tokens", 1024, "--sparsity", mode)
        for mode in ("dense", "exact", "predicted")
    }
    whole = call(capsys, "eval", sparse, "--tokens", 1024)
    assert scores["dense"]["perplexity"] == pytest.approx(whole["perplexity"], rel=2e-3)
    assert scores["exact"]["perplexity"] == pytest.approx(scores["dense"]["perplexity"], rel=1e-5)
    assert scores["predicted"]["perplexity"] < 1.5 * scores["exact"]["perplexity"]
    assert scores["exact"]["density"] == pytest.approx(whole["density"], abs=0.01)
    against = call(capsys, "eval", file, "--tokens", 1024, "--sparsity", "exact", "--against", sparse)
    assert abs(against["kl_mean"]) < 1e-3
    assert against["top1_agreement"] > 0.98

    answers = {
        mode: call(capsys, "run", file, "-p", "The people of the", "-n", 16, "--sparsity", mode, "--temp", 0)
        for mode in ("dense", "exact")
    }
    assert answers["dense"]["tokens"] == answers["exact"]["tokens"]
    for path in (sparse, predictors, file, tmp_path / "profile.safetensors", model):
        assert call(capsys, "inspect", path)["kind"]


def test_the_chain_with_predictors_in_the_loop(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    sparse, predictors, file = tmp_path / "sparse", tmp_path / "predictors", tmp_path / "powerinfer.gguf"
    asked = ["relufy", "tiny-mistral", "--out", sparse, "--predictors", predictors, "--rank", 32, "--tokens", "8K"]
    found = call(capsys, *asked, "--steps", 20, "--batch-tokens", 1024)
    assert found["predictors"]["ffns"][2]["threshold"] == 0
    call(capsys, "export-gguf", sparse, "--predictors", predictors, "--out", file, "--target", "powerinfer")
    scores = [
        call(capsys, "eval", file, "--tokens", 2048, "--sparsity", mode)["perplexity"]
        for mode in ("exact", "predicted")
    ]
    reported = [found["predictors"][f"perplexity_{mode}"] for mode in ("exact", "predicted")]
    assert scores[1] / scores[0] == pytest.approx(reported[1] / reported[0], rel=0.03)


@pytest.mark.parametrize("model", ["tiny-mistral", "tiny-mixtral"])
@pytest.mark.parametrize("type_name", ["F32", "F16"])
def test_the_runner_gives_the_logits_of_transformers(tmp_path: Path, model: str, type_name: str):
    import torch
    from transformers import AutoModelForCausalLM

    sparse, file = tmp_path / "sparse", tmp_path / "f.gguf"
    tsconvert.relufy(RelufyConfig(model=model, out=sparse, recover="none", tokens=2048))
    tsconvert.export_gguf(ExportConfig(model=str(sparse), out=file, type_name=type_name))
    reference = AutoModelForCausalLM.from_pretrained(sparse, trust_remote_code=True, dtype=torch.float32)
    with tsconvert.load(file, mode="dense", cache_type="F32") as runner:
        tokens = runner.tokenizer.encode(embedded.text("heldout.txt").read_text(encoding="utf-8")[:1500])[:256]
        dense_TV = runner.logits(tokens)
        runner.mode = "exact"
        exact_TV = runner.logits(tokens)
    with torch.no_grad():
        theirs_TV = reference(input_ids=torch.tensor([tokens])).logits[0].numpy()
    scale = np.abs(theirs_TV).max()
    assert np.abs(dense_TV - theirs_TV).max() <= 1e-3 * scale
    assert np.abs(exact_TV - dense_TV).max() <= 1e-5 * scale


def test_predictors_of_another_model_are_refused_by_name(capsys, tmp_path: Path):
    for name, how in (("a", ["--align", "--tokens", "2K"]), ("b", ["--no-align"])):
        call(capsys, "relufy", "tiny-mistral", "--out", tmp_path / name, "--recover", "none", *how)
    call(capsys, "predictors", tmp_path / "a", "--out", tmp_path / "p", "--tokens", "4K", "--rank", 8, "--steps", 5)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        arguments = ["export-gguf", tmp_path / "b", "--predictors", tmp_path / "p", "--out", tmp_path / "f.gguf"]
        cli.main([*map(str, arguments)], prog_name="tsconvert")
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'p'}: these predictors were trained for another model (fingerprint ")
    assert not (tmp_path / "f.gguf").exists()


@pytest.mark.slow
def test_the_demo(capsys, tmp_path: Path):
    found = call(capsys, "demo", "--out", tmp_path / "demo")
    stages = found["stages"]
    ratio = {name: stage["perplexity_ratio"] for name, stage in stages.items() if stage.get("perplexity_ratio")}
    assert ratio["each-layer"] < 1.4
    assert ratio["the-whole"] < 1.2
    assert ratio["predicted"] < 1.08 * ratio["exact"]
    assert all(stages[name]["text"] for name in ("people", "people-predicted", "whale"))
    shape = {row["mode"]: row["tokens_per_s"] for row in stages["speed-7b"]["rows"]}
    assert shape["dense"] < shape["exact"] < shape["predicted"]
    for stage in stages.values():  # what the page shows can be typed
        name, *words = shlex.split(stage["command"])[1:]
        with cli.main.get_command(click.Context(cli.main), name).make_context(name, words) as context:
            assert context.params
    page = Path(found["report"]).read_text(encoding="utf-8")
    sections = re.findall("<h2>(.*?)</h2>", page)
    assert sections[:5] == [
        "What it costs", "Which neurons fire", "How well firing is foreseen", "How fast it runs", "How it was recovered"
    ]  # fmt: skip
    assert sections[5:] == ["The files", "What storing the weights cost", "What it writes", "How it was made"]
    assert "32 layers of 4096 × 14336 in Q4_0: tokens per second" in page
