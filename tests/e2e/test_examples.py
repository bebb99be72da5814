"""Every file in examples/ runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tsconvert import embedded
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.gguf_import import import_gguf, smollm2_file
from tsconvert.model.tensor_names import Place

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    words = embedded.text("train.txt").read_text(encoding="utf-8")
    for i in range(60):
        (folder / f"{i:03}.txt").write_text(words[i * 20_000 : (i + 1) * 20_000], encoding="utf-8")
    return folder


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "pretrain_tiny.py",
        "embedded_text.py",
        "drelu_against_swiglu.py",
        "upcycle_mixtral.py",
    }


def test_pretrain_tiny(text: Path, tmp_path: Path):
    for file in sorted(text.iterdir())[20:]:
        file.unlink()
    out = tmp_path / "models"
    lines = run("pretrain_tiny.py", "--text", text, "--out", out, "--steps", 2, "--expert-steps", 1).splitlines()
    reports = {line["model"]: line for line in map(json.loads, (x for x in lines if x.startswith('{"model"')))}
    dense, grown = reports["tiny-mistral"], reports["tiny-mixtral before training on"]
    assert grown["held-out perplexity"] == pytest.approx(dense["held-out perplexity"], rel=0.02)
    for name in ("tiny-mistral", "tiny-mixtral"):
        ours, shipped = Checkpoint(out / name), Checkpoint(embedded.folder(name))
        assert ours.spec == shipped.spec
        assert ours.size_bytes == shipped.size_bytes < 12_000_000


@pytest.mark.slow
def test_drelu_against_swiglu(tmp_path: Path):
    sparse = tmp_path / "sparse"
    relufy(RelufyConfig(model="tiny-mistral", out=sparse, recover="none", tokens=2048))
    lines = run("drelu_against_swiglu.py", "--steps", 1, "--windows", 2, "--recovered", sparse).splitlines()
    curves = {curve["model"]: curve["perplexity"] for curve in json.loads(lines[-1])}
    assert list(curves) == ["SwiGLU, from scratch", "dReLU, from scratch", "tiny-mistral (SwiGLU)", "sparse"]
    dense, aligned = curves["tiny-mistral (SwiGLU)"], curves["sparse"]
    assert dense["90%"] > dense["50%"] > 0.99 * dense["0%"]
    assert aligned["50%"] == pytest.approx(aligned["0%"], rel=1e-4)  # dReLU leaves more than half at zero by itself


def test_embedded_text(text: Path, tmp_path: Path):
    run("embedded_text.py", "--text", text, "--out", tmp_path / "out")
    train, held_out = ((tmp_path / "out" / name).read_text() for name in ("train.txt", "heldout.txt"))
    assert len(train) > 48 * 19_000
    assert held_out[1000:1200] not in train


@pytest.mark.parametrize(
    ("model", "tokens", "training"),
    [("tiny-mistral", 4096, LocalRecovery(steps=10, batch_tokens=512)),
     pytest.param("smollm2", 2048, LocalRecovery(steps=4, batch_tokens=512), marks=pytest.mark.slow)],
    ids=["tiny-mistral", "smollm2"],
)  # fmt: skip
def test_upcycle_mixtral(model: str, tokens: int, training: LocalRecovery, tmp_path: Path):
    """A Mixtral grown from a dense model computes the same, and is recovered as any."""
    dense = str(import_gguf(smollm2_file(), tmp_path / "dense")) if model == "smollm2" else model
    moe, sparse = tmp_path / "moe", tmp_path / "sparse"
    run("upcycle_mixtral.py", dense, "--out", moe)
    scored = [EvalConfig(model=str(each), tokens=tokens, method="papers") for each in (dense, moe)]
    before, after = (evaluate(each).perplexity for each in scored)
    assert after == pytest.approx(before, rel=1e-5)
    report = relufy(RelufyConfig(model=str(moe), out=sparse, tokens=tokens, context=256, training=training))
    assert all(layer.error_after < layer.error_before for layer in report.layers)
    assert all(len(layer.expert_tokens) == 4 and min(layer.expert_tokens) > 0 for layer in report.layers)
    train_tokens = tokens - max(1, tokens // 256 // 16) * 256
    assert all(sum(layer.expert_tokens) == 2 * train_tokens for layer in report.layers)
    experts = [Checkpoint(sparse).array(Place("ffn_gate", 0, expert)) for expert in range(4)]
    assert all(not np.array_equal(experts[0], other) for other in experts[1:])
