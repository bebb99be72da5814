"""What `tsconvert plan` reckons against what is measured: the stages that compute, on one layer of three shapes.

    OMP_NUM_THREADS=1 python benchmarks/plan.py /scratch --shape 7b      # or experts, small

One thread, and its CPU time rather than the clock's: it is the same on a busy machine. Prints the rows, then one JSON
line, which tests/evaluate/plan/measured_runs.json keeps.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from memory import watched
from shapes import write_checkpoint

from tsconvert.convert.config.local import LocalRecovery
from tsconvert.evaluate.plan.config import Described
from tsconvert.evaluate.plan.machine import Machine, machine_of, measure_products
from tsconvert.evaluate.plan.stages import Settings, Stage, stages
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.predictors.config import Training

TSCONVERT = [sys.executable, "-m", "tsconvert"]
TOKENS, STEPS, BATCH, RANK, PREDICTOR_STEPS = 2048, 8, 512, 256, 20
SHAPES = {
    "7b": {"width": 4096, "neurons": 14336, "heads": 32, "kv_heads": 8},
    "experts": {"width": 2048, "neurons": 4096, "heads": 16, "kv_heads": 4, "experts": 8},
    "small": {"width": 1024, "neurons": 4096, "heads": 16, "kv_heads": 4},
}


def commands(dense: Path, sparse: Path, out: Path) -> dict[str, list[str]]:
    """Each stage's command line."""
    text = ["--tokens", str(TOKENS)]
    steps = ["--steps", str(STEPS), "--batch-tokens", str(BATCH), "--precision", "f32"]
    trained = ["--steps", str(PREDICTOR_STEPS), "--rank", str(RANK), "--precision", "f32"]
    return {
        "relufy": ["relufy", str(dense), "--out", str(out / "r"), *text, *steps],
        "profile": ["profile", str(sparse), "--out", str(out / "p.safetensors"), *text],
        "predictors": ["predictors", str(sparse), "--out", str(out / "d"), *text, *trained],
        "imatrix": ["imatrix", str(sparse), "--out", str(out / "i.gguf"), *text],
    }


def planned(dense: Path, sparse: Path, machine: Machine) -> dict[str, Stage]:
    """The same stages as `plan` reckons them."""
    found: dict[str, Stage] = {}
    for folder in (sparse, dense):
        checkpoint = open_checkpoint(folder)
        settings = Settings(
            tokens=TOKENS, rank=RANK, source_bytes=checkpoint.size_bytes,
            recovery=LocalRecovery(steps=STEPS, batch_tokens=BATCH, autocast=False),
            training=Training(steps=PREDICTOR_STEPS, autocast=False),
        )  # fmt: skip
        found = {stage.name: stage for stage in stages(checkpoint.spec, machine, settings, {}, None)} | found
    return found


def cpu_s() -> float:
    """CPU time of all processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    arguments = parser.parse_args()
    scratch = arguments.scratch / f"tsconvert-plan-{arguments.shape}"
    shutil.rmtree(scratch, ignore_errors=True)
    shape = SHAPES[arguments.shape]
    dense = write_checkpoint(scratch / "dense", layers=1, **shape)
    sparse = write_checkpoint(scratch / "sparse", layers=1, activation="drelu", **shape)
    said = Described(cores=1, bandwidth_gb=10, memory_bytes=10**11, gflops=measure_products(time.process_time) / 1e9)
    machine = machine_of(said)
    print(machine)
    expected, rows = planned(dense, sparse, machine), []
    for name, command in commands(dense, sparse, scratch).items():
        before_s = cpu_s()
        usage = watched([*TSCONVERT, *command])
        row = {
            "stage": name, "cpu_s": round(cpu_s() - before_s, 1), "planned_s": round(expected[name].time_s, 1),
            "peak_gb": round(usage.peak_anonymous_bytes / 1e9, 2),
            "planned_gb": round(expected[name].memory_bytes / 1e9, 2),
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    shutil.rmtree(scratch)
    print(json.dumps({"shape": shape, "gflops": round(machine.flops / 1e9, 1), "rows": rows}))


if __name__ == "__main__":
    main()
