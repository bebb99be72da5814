"""Two processes under torchrun (gloo) find what one finds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsconvert.model.checkpoint import Checkpoint
from tsconvert.predictors.folder import load_predictors
from tsconvert.predictors.profile.file import load_profile

ONE = [sys.executable, "-m", "tsconvert"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tsconvert"]
TEXT = ["--tokens", "8K", "--context", "128"]


def tsconvert(program: list[str], *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*program, *arguments, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def distance(one: "np.ndarray", other: "np.ndarray") -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A folder with what one process made and what two made, and what they said."""
    folder = tmp_path_factory.mktemp("distributed")
    how = ["relufy", "tiny-mixtral", "--steps", "8", "--precision", "f32", "--dtype", "F32", *TEXT]
    how += ["--batch-tokens", "512", "--target-sparsity", "0.85", "--learning-rate", "1e-3", "--seed", "1"]
    how += ["--silenced-by", "l1"]  # thresholds are the mean of the processes' quantiles: near, not equal
    return folder, *(tsconvert(p, *how, "--out", str(folder / name)) for p, name in ((ONE, "one"), (TWO, "two")))


def test_relufy(converted):
    folder, one, two = converted
    assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-4)
    assert two["energy_kept"] == pytest.approx(one["energy_kept"], rel=1e-6)
    for ours, theirs in zip(two["layers"], one["layers"], strict=True):
        assert ours["expert_tokens"] == theirs["expert_tokens"]
        assert ours["error_after"] == pytest.approx(theirs["error_after"], rel=1e-4)
        assert ours["density"] == pytest.approx(theirs["density"], rel=1e-3)
    before, after = Checkpoint(folder / "one"), Checkpoint(folder / "two")
    # AdamW's first steps are of size one whatever the gradient's: where it is rounding noise, weights part
    assert max(distance(before.array(place), after.array(place)) for place in before.places) < 1e-3


def test_the_whole_model_after_its_layers(tmp_path: Path):
    how = ["relufy", "tiny-mistral", "--recover", "full", "--steps", "2", "--precision", "f32", "--dtype", "F32", *TEXT]
    how += ["--batch-tokens", "512", "--target-sparsity", "0.85", "--silenced-by", "l1", "--evaluations", "1"]
    how += ["--full-tokens", "1K", "--full-batch-tokens", "512", "--micro-tokens", "256"]
    one, two = (tsconvert(p, *how, "--out", str(tmp_path / name)) for p, name in ((ONE, "one"), (TWO, "two")))
    assert two["full"]["perplexity"] == pytest.approx(one["full"]["perplexity"], rel=1e-4)


@pytest.mark.slow
def test_profile(converted):
    folder = converted[0]
    for program, name in ((ONE, "1"), (TWO, "2")):
        tsconvert(program, "profile", str(folder / "one"), *TEXT, "--out", str(folder / name))
    one, two = load_profile(folder / "1"), load_profile(folder / "2")
    assert one.tokens == two.tokens
    for ours, theirs in zip(two.layers, one.layers, strict=True):
        assert np.array_equal(ours.counts_CEF, theirs.counts_CEF)
        assert ours.density_percentiles == pytest.approx(theirs.density_percentiles)
        assert ours.union == pytest.approx(theirs.union)
        assert ours.energy98 == pytest.approx(theirs.energy98)


@pytest.mark.slow
def test_predictors(converted):
    folder = converted[0]
    how = ["predictors", str(folder / "one"), "--rank", "32", "--steps", "8", "--precision", "f32", *TEXT]
    how += ["--learning-rate", "3e-3"]
    said = [tsconvert(p, *how, "--out", str(folder / name)) for p, name in ((ONE, "p1"), (TWO, "p2"))]
    assert said[1]["perplexity_predicted"] == pytest.approx(said[0]["perplexity_predicted"], rel=1e-4)
    one, two = load_predictors(folder / "p1"), load_predictors(folder / "p2")
    pairs = [pair for layers in zip(one.ffns, two.ffns, strict=True) for pair in zip(*layers, strict=True)]
    assert len(pairs) == 3 * 4
    # weights are stored in F16, whose steps are 1e-3 apart
    assert max(distance(a.fc1_RD, b.fc1_RD) for a, b in pairs) < 1e-3
    assert max(distance(a.fc2_FR, b.fc2_FR) for a, b in pairs) < 1e-3


AT_EXIT = """
import atexit, sys, torch
import torch.distributed as dist
from tsconvert.common import processes
atexit.register(print, "ran at exit")
dist.init_process_group("gloo")
dist.barrier()  # one that ends here while the other still connects to it would end that one too
for _ in range(300):
    dist.group.WORLD.allgather([torch.empty(9) for _ in range(2)], torch.ones(9))
processes.exit_process(0)
"""


def test_a_process_whose_gloo_threads_still_work_ends_well(tmp_path: Path):
    # taking the interpreter down would abort: "terminate called without an active exception"
    program = tmp_path / "at_exit.py"
    program.write_text(AT_EXIT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ran at exit") == 2
