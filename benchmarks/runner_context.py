"""Decode speed of the runner after long texts: a token costs what its keys and values weigh, and no more.

    python benchmarks/runner_context.py FILE.gguf [--positions 1024 8192 32768] [--llama-bench BUILD/bin/llama-bench]

The cache is filled with random keys and values instead of reading a long prompt.
"""

import argparse
import json
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

from tsconvert.runner.model import Model, load


def fill(model: Model, seed: int = 0) -> None:
    """Random float16 keys and values in every slot, drawn once and repeated."""
    pool = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float16).view(np.uint8)
    for name in ("keys", "values"):
        flat = model._engine.buffers[name].reshape(-1)
        for start in range(0, len(flat), len(pool)):
            flat[start : start + len(pool)] = pool[: len(flat) - start]


def decode(model: Model, position: int, tokens: int) -> float:
    """Tokens/s from ``position`` on."""
    model.position = position
    model.feed([1])
    start_s = time.perf_counter()
    for token in range(2, tokens + 2):
        model.feed([token])
    return tokens / (time.perf_counter() - start_s)


def llama_bench(program: Path, file: Path, threads: int, position: int, tokens: int) -> float:
    """llama-bench's tokens/s after a prompt of ``position`` tokens."""
    command = [program, "-m", file, "-t", threads, "-p", 0, "-n", tokens, "-d", position, "-r", 1, "-o", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def main() -> None:
    """Print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--positions", type=int, nargs="+", default=[64, 1024, 8192, 32768])
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--peer-positions", type=int, nargs="*", default=[])
    for name, default in {"threads": 2, "tokens": 16, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    found = {}
    with load(options.file, threads=options.threads, context=max(options.positions) + options.tokens + 2) as model:
        fill(model)
        decode(model, options.positions[0], options.tokens)
        spec = model.spec
        size = 2 * 2 * spec.layers * spec.kv_heads * spec.head_dim
        print(f"{'position':>8} {'tokens/s':>9} {'ms':>7} {'cache MB':>9} {'llama.cpp':>9}")
        for position in options.positions:
            speed = statistics.median(decode(model, position, options.tokens) for _ in range(options.rounds))
            found[position] = round(speed, 2)
            peer = ""
            if options.llama_bench and position in options.peer_positions:
                found[f"llama.cpp {position}"] = llama_bench(
                    options.llama_bench, options.file, options.threads, position, options.tokens
                )
                peer = f"{found[f'llama.cpp {position}']:9.1f}"
            print(
                f"{position:>8} {speed:>9.1f} {1000 / speed:>7.2f} {size * position / 1e6:>9.1f} {peer:>9}", flush=True
            )
    print(json.dumps({"file": str(options.file), "threads": options.threads, "tokens/s": found}))


if __name__ == "__main__":
    main()
