"""Decode and prompt speed of the runner on the 7B shape, beside llama.cpp's and PowerInfer's on the same shape.

    python benchmarks/runner_7b.py --llama-bench BUILD/bin/llama-bench [--powerinfer BUILD/bin/main] [--scratch /tmp]
    python benchmarks/runner_7b.py --type Q8_0 --modes dense --llama-bench ...
    python benchmarks/runner_7b.py --experts 8 --layers 6 --prompt 512 --llama-bench ...       # layers of the 8x7B

Rounds alternate between engines, so that a machine that is slower for a while is slower for all of them; a first round
that is not counted reads the files in. Bytes are those of the rows that were read, of experts those that were chosen.
Files (4 GB each at Q4_0; a layer of the 8x7B takes 0.86 GB) are written by runner/bench/planted_model.py and deleted
at the end, unless --keep.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tsconvert.runner.bench.planted_model import Shape, write_planted
from tsconvert.runner.bench.shape_bench import decode
from tsconvert.runner.density import weight_bytes
from tsconvert.runner.kernels.bandwidth import measure_bandwidth
from tsconvert.runner.model import Model, load


def prompt(model: Model, mode: str, tokens: int) -> float:
    """Tokens/s of a prompt."""
    model.mode = mode
    model.reset()
    ids = np.random.default_rng(2).integers(300, model.spec.vocab, tokens).tolist()
    start_s = time.perf_counter()
    model.feed(ids)
    return tokens / (time.perf_counter() - start_s)


def llama_bench(program: Path, file: Path, threads: int, prompt_tokens: int, tokens: int) -> float:
    """llama-bench's tokens/s of one repetition."""
    command = [
        program,
        "-m",
        file,
        "-t",
        str(threads),
        "-p",
        str(prompt_tokens),
        "-n",
        str(tokens),
        "-r",
        "1",
        "-o",
        "json",
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def powerinfer(program: Path, file: Path, threads: int, tokens: int) -> float:
    """PowerInfer's tokens/s of generation."""
    command = [str(program.resolve()), "-m", str(file.resolve()), "-t", str(threads), "-n", str(tokens)]
    command += ["-p", "t1", "--temp", "0", "--ignore-eos"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=file.parent)  # it leaves a main.log
    found = re.search(
        r"\n.*? eval time =.*?runs.*?([\d.]+) tokens per second", done.stderr.replace("prompt eval", "prompt_eval")
    )
    return float(found[1]) if found else float("nan")


def main() -> None:
    """Print a table, then one JSON line."""
    options = _options()
    shape = Shape(
        type_name=options.type, predictor_type=options.predictor_type, rank=options.rank, layers=options.layers,
        experts=options.experts, experts_per_token=2 if options.experts else 0,
    )  # fmt: skip
    name = f"r7x{options.experts}" if options.experts else "r7"
    files = {"sparse": options.scratch / f"{name}-sparse.gguf"}
    if options.attention_share is not None:
        files["by inputs"] = options.scratch / f"{name}-by-inputs.gguf"
    if options.llama_bench:
        files["llama.cpp"] = options.scratch / f"{name}-llama.gguf"
    if options.powerinfer:
        files["powerinfer"] = options.scratch / "r7-powerinfer.gguf"
    try:
        for target, file in files.items():
            if not (options.keep and file.exists()):
                share = options.attention_share if target == "by inputs" else None
                kind = "sparse" if target == "by inputs" else target
                write_planted(file, kind, replace(shape, attention_share=share))
        if options.write_only:
            return
        _report(options, _measure(options, files))
    finally:
        for file in files.values() if not options.keep else ():
            file.unlink(missing_ok=True)


def _measure(options: argparse.Namespace, files: dict[str, Path]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(f"{name} {value:.4g}", file=sys.stderr, flush=True)

    threads = options.threads
    models = {"ours": load(files["sparse"], threads=threads, context=1024)} if options.modes else {}
    if "by inputs" in files:
        models["ours by inputs"] = load(files["by inputs"], threads=threads, context=1024)
    if options.same_file:
        models["ours on llama.cpp's file"] = load(files["llama.cpp"], threads=threads, context=1024)
    for turn in range(options.rounds + 1):
        if turn == 1:
            found.clear()
        for name, model in models.items():
            note("bandwidth", measure_bandwidth(threads) / 1e9)
            modes = {"ours": options.modes, "ours by inputs": ("dense", "predicted")}
            for mode in modes.get(name, ("dense",)):
                note(f"{name}, {mode}", 1 / decode(model, mode, options.tokens))
                note(f"{name}, {mode}: bytes", weight_bytes(model.source, model.density, mode))
                note(f"{name}, {mode}: fired", float(model.density.fired.mean()))
                if options.prompt:
                    note(f"{name}, {mode}: prompt", prompt(model, mode, options.prompt))
        if options.llama_bench:
            note("llama.cpp", llama_bench(options.llama_bench, files["llama.cpp"], threads, 0, options.tokens))
            if options.prompt:
                speed = llama_bench(options.llama_bench, files["llama.cpp"], threads, options.prompt, 0)
                note("llama.cpp: prompt", speed)
        if options.powerinfer:
            note("powerinfer", powerinfer(options.powerinfer, files["powerinfer"], threads, options.tokens))
    for model in models.values():
        model.close()
    return found


def _report(options: argparse.Namespace, found: dict[str, list[float]]) -> None:
    middle = {name: statistics.median(values) for name, values in found.items()}
    peer, rate = middle.get("llama.cpp", float("nan")), middle.get("bandwidth", float("nan"))
    experts = f", 2 of {options.experts} experts" if options.experts else ""
    predictors = f"predictors rank {options.rank} {options.predictor_type}"
    print(f"{options.layers} layers{experts}, {options.type}, {predictors}, {options.threads} threads,", end=" ")
    print(f"median of {options.rounds}; memory reads {rate:.1f} GB/s")
    print(f"{'':<34} {'tokens/s':>9} {'x llama.cpp':>12} {'GB/token':>9} {'GB/s':>6} {'of memory':>9} {'prompt/s':>9}")
    for name, speed in middle.items():
        if ":" in name or name == "bandwidth":
            continue
        size = middle.get(f"{name}: bytes", float("nan")) / 1e9
        pp = middle.get(f"{name}: prompt", float("nan"))
        print(f"{name:<34} {speed:>9.2f} {speed / peer:>12.2f} {size:>9.3f} {size * speed:>6.1f}", end=" ")
        print(f"{size * speed / rate:>9.0%} {pp:>9.1f}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    facts = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "commit": commit.stdout.strip(),
    }
    print(json.dumps(facts | {"median of": options.rounds, **{k: round(v, 4) for k, v in middle.items()}}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--powerinfer", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp"))
    parser.add_argument("--type", default="Q4_0")
    parser.add_argument("--predictor-type", default="Q8_0")
    parser.add_argument("--modes", nargs="*", default=["dense", "exact", "predicted"])
    parser.add_argument("--same-file", action="store_true", help="also run llama.cpp's file")
    for name, default in {
        "rank": 512,
        "layers": 32,
        "experts": 0,
        "threads": 2,
        "tokens": 32,
        "prompt": 0,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--attention-share", type=float, help="also a file whose predicted mode keeps this share of attention's outputs"
    )
    parser.add_argument("--keep", action="store_true", help="use files that are there, and leave them")
    parser.add_argument("--write-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
