"""A dense GGUF file and a sparse one of the same model and type, beside llama.cpp on the dense one.

    python benchmarks/runner_smollm2.py DENSE.gguf SPARSE.gguf --llama-bench BUILD/bin/llama-bench

Rounds alternate between engines; medians.
"""

import argparse
import json
import statistics
from pathlib import Path

from runner_7b import llama_bench, prompt

from tsconvert.runner.bench.shape_bench import decode
from tsconvert.runner.model import load


def main() -> None:
    """Print a table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("sparse", type=Path)
    parser.add_argument("--llama-bench", type=Path, required=True)
    for name, default in {"threads": 2, "tokens": 96, "prompt": 512, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    context = options.prompt + options.tokens + 8
    found: dict[str, list[float]] = {}
    with (
        load(options.dense, threads=options.threads, context=context) as dense,
        load(options.sparse, threads=options.threads, context=context) as sparse,
    ):
        cases = ((dense, "dense"), (sparse, "exact"), (sparse, "predicted"))
        for _ in range(options.rounds):
            for model, mode in cases:
                found.setdefault(mode, []).append(1 / decode(model, mode, options.tokens))
                found.setdefault(f"{mode} prompt", []).append(prompt(model, mode, options.prompt))
            peer = [
                llama_bench(options.llama_bench, options.dense, options.threads, *size)
                for size in ((0, options.tokens), (options.prompt, 0))
            ]
            found.setdefault("llama.cpp", []).append(peer[0])
            found.setdefault("llama.cpp prompt", []).append(peer[1])
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, speed in middle.items():
        against = middle["llama.cpp prompt" if name.endswith("prompt") else "llama.cpp"]
        print(f"{name:<20} {speed:>9.1f} tokens/s {speed / against:>6.2f} x llama.cpp")
    print(json.dumps({"dense": str(options.dense), "sparse": str(options.sparse), **middle}))


if __name__ == "__main__":
    main()
