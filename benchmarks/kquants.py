"""K-quant encoders on one core: ours against ggml's, million weights a second, and whether the bytes are equal.

    python benchmarks/kquants.py                           # a table, then one JSON line
    python benchmarks/kquants.py --types Q4_K --rows 4096 --columns 4096

Time is the thread's own (time.thread_time), so that what else runs on the machine counts little; medians, in turn.
Compilation is timed in fresh processes, with an empty cache and with the one that the first left.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types.kquants import encoders

TYPES = ("Q4_K", "Q6_K", "Q5_K", "Q3_K", "Q2_K")
_FIRST_CALL = (
    "import numpy, sys, time; start = time.thread_time(); from tsconvert.quant.types.kquants import encoders;"
    "[encoders.quantize_rows(numpy.zeros((1, 256), 'f4'), name) for name in sys.argv[1:]];"
    "print(time.thread_time() - start)"
)


@dataclass(frozen=True)
class Row:
    type: str
    importances: bool
    ggml_mweights_s: float
    ours_mweights_s: float
    times: float
    equal: bool


def measure(type_name: str, rows_RC: np.ndarray, importance_C: np.ndarray | None, repeats: int) -> Row:
    """One line of the table; ggml gets an eighth of the rows, because it takes so long."""
    few_RC = rows_RC[: max(1, len(rows_RC) // 8)]
    ours = encoders.quantize_rows(few_RC, type_name, importance_C)
    if ours is None:
        raise SystemExit(f"{platform.machine()}: ggml encodes here")
    equal = bool(np.array_equal(ours, ggml.quantize_chunk(few_RC, type_name, importance_C)))
    times = [
        (
            clocked(lambda: ggml.quantize_chunk(few_RC, type_name, importance_C)) / few_RC.size,
            clocked(lambda: encoders.quantize_rows(rows_RC, type_name, importance_C)) / rows_RC.size,
        )
        for _ in range(repeats)
    ]
    theirs_s, ours_s = (statistics.median(column) for column in zip(*times, strict=True))
    return Row(type_name, importance_C is not None, 1e-6 / theirs_s, 1e-6 / ours_s, theirs_s / ours_s, equal)


def clocked(work: Callable[[], object]) -> float:
    """Seconds of this thread."""
    start_s = time.thread_time()
    work()
    return time.thread_time() - start_s


def first_calls() -> dict[str, float]:
    """Seconds until the encoders are there: compiled, and from Numba's cache."""
    found = {}
    for name, types in (("affine", ["Q4_K"]), ("symmetric", ["Q6_K"]), ("both", ["Q4_K", "Q6_K"])):
        with tempfile.TemporaryDirectory() as cache:
            for state in ("compiled", "cached"):
                command = [sys.executable, "-c", _FIRST_CALL, *types]
                environment = os.environ | {"NUMBA_CACHE_DIR": cache}
                found[f"{name} {state}"] = float(subprocess.check_output(command, env=environment, text=True))
    return found


def cpu_name() -> str:
    """As LLVM calls it, which decides what the encoders are compiled to."""
    import llvmlite.binding

    return str(llvmlite.binding.get_host_cpu_name())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=TYPES, choices=TYPES)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows_RC = rng.standard_normal((options.rows, options.columns), np.float32) * np.float32(0.02)
    importance_C = rng.gamma(0.5, 1, options.columns).astype(np.float32)

    print(f"{'type':6}{'importances':>13}{'ggml Mw/s':>12}{'ours Mw/s':>12}{'times':>8}  equal")
    table = []
    for type_name in options.types:
        for weights_C in (None, importance_C):
            row = measure(type_name, rows_RC, weights_C, options.repeats)
            table.append(row)
            print(
                f"{row.type:6}{'yes' if row.importances else 'no':>13}{row.ggml_mweights_s:12.1f}"
                f"{row.ours_mweights_s:12.1f}{row.times:8.1f}  {row.equal}",
                flush=True,
            )
    seconds = first_calls()
    for name, value in seconds.items():
        print(f"first call, {name}: {value:.2f} s")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "commit": commit.stdout.strip(), "cpu": cpu_name(), "threads": 1,
        "median_of": options.repeats, "ggml": ggml.version(), "rows": options.rows, "columns": options.columns,
    }  # fmt: skip
    print(json.dumps(about | {"first_call_s": seconds, "table": [asdict(row) for row in table]}))


if __name__ == "__main__":
    main()
