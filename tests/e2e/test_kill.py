"""Killed with SIGKILL at ten random moments and resumed each time, relufy ends in the same bytes."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

LAYERS = 24
KILLS = 10


def start(model: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tsconvert", "relufy", str(model), "--out", str(out), "--tokens", "8K"]
    command += ["--context", "256", "--steps", "60", "--batch-tokens", "512", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(journal: Path) -> int:
    """Layers in the journal, whose first line is its head."""
    return journal.read_text().count("\n") - 1 if journal.is_file() else -1


@pytest.mark.slow
def test_ten_kills(make_checkpoint: Callable[..., Path], tmp_path: Path):
    model = make_checkpoint("mistral", num_hidden_layers=LAYERS)
    whole, out, journal = tmp_path / "whole", tmp_path / "killed", tmp_path / "killed.partial" / "journal.jsonl"
    begun_s = time.monotonic()
    assert start(model, whole).wait() == 0
    layer_s = (time.monotonic() - begun_s) / LAYERS
    rng = random.Random(0)
    for layers in sorted(rng.sample(range(-1, LAYERS - 1), KILLS)):  # -1: before there is a journal
        process = start(model, out, "--resume")
        while finished(journal) < layers:
            assert process.poll() is None, "the run ended before it was killed"
        try:
            process.wait(rng.uniform(0, layer_s))
            pytest.fail("the run ended before it was killed")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not out.exists()
    assert start(model, out, "--resume").wait() == 0
    for file in ("model.safetensors", "config.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    assert not out.with_name("killed.partial").exists()
