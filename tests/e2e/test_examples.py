"""Every file in examples/ runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsconvert import models
from tsconvert.convert.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    words = models.text("train.txt").read_text(encoding="utf-8")
    for i in range(60):
        (folder / f"{i:03}.txt").write_text(words[i * 20_000 : (i + 1) * 20_000], encoding="utf-8")
    return folder


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"pretrain_tiny.py", "embedded_text.py"}


def test_pretrain_tiny(text: Path, tmp_path: Path):
    out = tmp_path / "models"
    lines = run("pretrain_tiny.py", "--text", text, "--out", out, "--steps", 2, "--expert-steps", 1).splitlines()
    reports = {line["model"]: line for line in map(json.loads, (x for x in lines if x.startswith('{"model"')))}
    dense, grown = reports["tiny-mistral"], reports["tiny-mixtral before training on"]
    assert grown["held-out perplexity"] == pytest.approx(dense["held-out perplexity"], rel=0.02)
    for name in ("tiny-mistral", "tiny-mixtral"):
        ours, shipped = Checkpoint(out / name), Checkpoint(models.folder(name))
        assert ours.spec == shipped.spec
        assert ours.size_bytes == shipped.size_bytes < 12_000_000


def test_embedded_text(text: Path, tmp_path: Path):
    run("embedded_text.py", "--text", text, "--out", tmp_path / "out")
    train, held_out = ((tmp_path / "out" / name).read_text() for name in ("train.txt", "heldout.txt"))
    assert len(train) > 48 * 19_000
    assert held_out[1000:1200] not in train
