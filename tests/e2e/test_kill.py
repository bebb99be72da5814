"""Killed with SIGKILL at random moments and resumed each time, relufy ends in the same bytes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tsconvert", "relufy", "tiny-mistral", "--out", str(out), "--tokens", "16K"]
    command += ["--steps", "20", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_ten_kills(tmp_path: Path):
    begun_s = time.monotonic()
    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    took_s = time.monotonic() - begun_s
    out, rng, kills = tmp_path / "killed", random.Random(0), 0
    while kills < 10 and not out.exists():
        process = start(out, "--resume")
        try:
            process.wait(timeout=rng.uniform(0.2, 0.9) * took_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    if not out.exists():
        assert start(out, "--resume").wait() == 0
    assert kills >= 1
    assert weights(out) == weights(tmp_path / "whole")
    assert not out.with_name("killed.partial").exists()
