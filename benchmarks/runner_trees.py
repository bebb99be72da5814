"""Two versions of the runner on the same files, in turn: tokens/s of each mode, and the time from start to first token.

    python benchmarks/runner_trees.py OLD NEW FILE.gguf [FILE.gguf ...] [--rounds 5] [--tokens 32]

OLD and NEW are folders that hold a checkout named `tsconvert`. Every round starts one process a tree and file, old and
new in turn, so that a machine that is slower for a while is slower for both. Prints medians and ratios, then JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORKER = """
import json, sys, time
start_s = time.perf_counter()
from tsconvert.runner.model import load
path, tokens, modes = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
with load(path, context=512, threads=2) as model:
    found = {}
    model.mode = modes[0]
    model.feed([1, 2])
    found["first token, s"] = time.perf_counter() - start_s
    for mode in modes:
        model.mode = mode
        model.reset()
        model.feed([300, 301])
        begin_s = time.perf_counter()
        for i in range(tokens):
            model.feed([302 + i * 7919 % 20000])
        found[mode] = tokens / (time.perf_counter() - begin_s)
print(json.dumps(found))
"""


def run(tree: Path, file: Path, tokens: int, modes: str, cache: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", WORKER, str(file), str(tokens), modes]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--modes", default="dense,exact,predicted")
    options = parser.parse_args()
    trees = {"old": options.old.resolve(), "new": options.new.resolve()}
    report: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        caches = {name: str(Path(scratch) / name) for name in trees}
        cold = {n: run(t, options.files[0], 1, options.modes, caches[n])["first token, s"] for n, t in trees.items()}
        print(f"cold start, s: old {cold['old']:.2f}, new {cold['new']:.2f}")
        for file in options.files:
            found: dict[str, dict[str, list[float]]] = {"old": {}, "new": {}}
            for turn in range(options.rounds):
                for name in ("old", "new") if turn % 2 == 0 else ("new", "old"):
                    for key, value in run(trees[name], file, options.tokens, options.modes, caches[name]).items():
                        found[name].setdefault(key, []).append(value)
            print(f"{file.name}, median of {options.rounds}")
            for key in found["old"]:
                old, new = (statistics.median(found[name][key]) for name in ("old", "new"))
                print(f"  {key:<16} old {old:8.3f}  new {new:8.3f}  new/old {new / old:.3f}")
                report[f"{file.name}: {key}"] = {"old": round(old, 4), "new": round(new, 4)}
    print(json.dumps({"cold": cold, **report}))


if __name__ == "__main__":
    main()
