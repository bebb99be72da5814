"""The whole model trained by two CPU processes with FSDP, and by one that is killed: the same loss curve."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate"
STEPS = 20
ONE = [sys.executable, "-m", "tsconvert"]
TWO = [
    sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HERE / "two_cpu_processes.yaml"),
    str(HERE / "fsdp_on_cpu.py"),
]  # fmt: skip


def command(program: list[str], out: Path) -> list[str]:
    how = ["relufy", str(out.parent / "sparse"), "--teacher", "tiny-mistral", "--out", str(out), "--recover", "full"]
    how += ["--tokens", "8K", "--context", "128", "--precision", "f32", "--target-sparsity", "0.85", "--json"]
    how += ["--silenced-by", "l1"]  # thresholds are the mean of the processes' quantiles: near, not equal
    how += ["--full-tokens", str(STEPS * 512), "--full-batch-tokens", "512", "--micro-tokens", "256"]
    return [*program, *how, "--evaluations", "4", "--cross-entropy", "1"]  # as when the bounds below were set


def start(program: list[str], out: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command(program, out), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    said, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(said)["full"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a sparse model, and what one unbroken process found."""
    folder = tmp_path_factory.mktemp("full")
    few = ["--tokens", "8K", "--context", "128", "--steps", "5", "--precision", "f32", "--dtype", "F32"]
    made = [*ONE, "relufy", "tiny-mistral", "--out", str(folder / "sparse"), *few]
    subprocess.run(made, check=True, capture_output=True)
    return folder, finish(start(ONE, folder / "one"))


def test_two_processes_with_fsdp(whole):
    folder, one = whole
    two = finish(start(TWO, folder / "two"))
    assert len(two["losses"]) == STEPS
    assert [step for step, _ in two["losses"]] == [step for step, _ in one["losses"]]
    for (_, ours), (_, theirs) in zip(two["losses"], one["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for ours, theirs in zip(two["evaluations"], one["evaluations"], strict=True):
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)


@pytest.mark.slow  # tests/convert/full/test_recovery.py has one in this process
def test_killed_and_resumed(whole):
    folder, one = whole
    process = start(ONE, folder / "killed")
    while not list((folder / "killed.full").glob("checkpoint-*/recovery.json")):
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "killed").exists()
    resumed = finish(start(ONE, folder / "killed", "--resume"))
    assert resumed["losses"] == one["losses"]
    files = [folder / name / "model.safetensors" for name in ("one", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("name", ["eight_gpus.yaml", "four_hosts.yaml"])
def test_the_gpu_configurations_are_read_by_accelerate(name: str):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(CONFIGS / name))
    assert found.distributed_type.value == "FSDP"
    assert found.fsdp_config["fsdp_version"] == 2
