"""Generation against what `tsconvert plan` reckons: a few layers of the 7B shape, every mode of several types.

    python benchmarks/plan_decode.py /scratch --layers 4      # 2.3 GB of checkpoint, 5 GB of GGUF files; removed

One thread, and its CPU time rather than the clock's: a busy machine then costs only what it takes of the memory's
bandwidth. Weights and predictors are random: a quarter of the neurons fires, and the predictors name the share asked
for, whichever they are; what is read is taken from the runner's own counters. Prints the rows, then one JSON line,
which tests/evaluate/plan/measured_runs.json keeps.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from shapes import write_checkpoint

from tsconvert.evaluate.plan.machine import Machine
from tsconvert.evaluate.plan.model_bytes import file_bytes
from tsconvert.evaluate.plan.speed import speed
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.predictors.cost import Rates
from tsconvert.predictors.folder import PredictorSet, save_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.kernels import bandwidth
from tsconvert.runner.model import Model, load

RANK, TOKENS = 512, 24


def random_predictor(width: int, neurons: int, share: float) -> Predictor:
    """Names ``share`` of the neurons for a normal input."""
    rng = np.random.default_rng(0)
    fc1_RD = rng.standard_normal((RANK, width), np.float32) / np.sqrt(width)
    fc2_FR = rng.standard_normal((neurons, RANK), np.float32) / np.sqrt(RANK)
    logits_TF = np.maximum(rng.standard_normal((16, width), np.float32) @ fc1_RD.T, 0) @ fc2_FR.T
    return Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR, threshold=float(np.quantile(logits_TF, 1 - share)))


def token_s(model: Model) -> float:
    """CPU seconds of a token: of some the first quartile, for others only take time away."""
    model.reset()
    model.feed([1, 2, 3])
    model.reset_density()
    spent = []
    for token in range(100, 100 + TOKENS):
        start_s = time.process_time()
        model.feed([token])
        spent.append(time.process_time() - start_s)
    return statistics.quantiles(spent, n=4)[0]


def bandwidth_of_a_core() -> float:
    """Bytes a second that one thread reads, by its CPU time; the best of the runner's ways over 512 MB."""
    values, best_s = np.ones(1 << 26, np.int64), float("inf")
    for _ in range(2):
        for way in bandwidth._WAYS:
            start_s = time.process_time()
            bandwidth._compiled()(values.ctypes.data, values.nbytes, *way)
            best_s = min(best_s, time.process_time() - start_s)
    return values.nbytes / best_s


def rates_of(model: Model) -> Rates:
    """What the runner read."""
    density = model.density
    gate, up, down = (round(float(share.mean()), 4) for share in (density.gate, density.up, density.down))
    return Rates(gate=up, fired=down, predicted=gate, predicted_gate=up, hit=down)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--share", type=float, default=0.12, help="Of the neurons, to be predicted.")
    parser.add_argument("--keep", action="store_true", help="The files, for another run.")
    parser.add_argument("--types", nargs="*", default=["Q4_0", "Q8_0", "Q4_K_M", "F16"])
    arguments = parser.parse_args()
    scratch = arguments.scratch / "tsconvert-decode"
    if not scratch.exists():
        write_checkpoint(scratch / "m", layers=arguments.layers, activation="drelu")
    checkpoint = open_checkpoint(scratch / "m")
    spec = checkpoint.spec
    if not (scratch / "p").exists():
        ffns = [[random_predictor(spec.width, spec.neurons, arguments.share)]] * spec.layers
        save_predictors(PredictorSet(model_fingerprint=checkpoint.fingerprint, ffns=ffns, report={}), scratch / "p")
    rows = []
    for type_name in arguments.types:
        file = scratch / f"{type_name}.gguf"
        if not file.exists():
            config = ExportConfig(model=scratch / "m", out=file, type_name=type_name, predictors=scratch / "p")
            export_unverified(config)
        bytes_per_s = bandwidth_of_a_core()
        machine = Machine(bandwidth=bytes_per_s, cores=1, memory_bytes=10**12, flops=1.0, disk_bytes_per_s=1e9)
        with load(file, threads=1) as model:
            for mode in ("dense", "exact", "predicted"):
                model.mode = mode
                spent_s = token_s(model)
                rates, size = rates_of(model), file_bytes(spec, type_name, RANK)
                found = speed(spec, size, machine, type_name=type_name, mode=mode, rates=rates, position=TOKENS)
                rows.append(
                    {"type": type_name, "mode": mode, "layers": spec.layers, "rank": RANK, "cores": 1,
                     "bandwidth_gb_per_s": round(bytes_per_s / 1e9, 1), "tokens_per_s": round(1 / spent_s, 2),
                     "planned": round(found.tokens_per_s, 2), "read_gb": round(found.bytes_per_step / 1e9, 3),
                     "position": TOKENS, "rates": vars(rates)}
                )  # fmt: skip
                print({key: value for key, value in rows[-1].items() if key != "rates"}, flush=True)
    print(json.dumps(rows))
    if not arguments.keep:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
