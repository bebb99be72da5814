"""What each part of local recovery is worth: variants of one run, each scored on held-out text.

    python benchmarks/recovery_ablation.py tiny-mistral                       # a table, then one JSON line
    python benchmarks/recovery_ablation.py build/demo/dense --tokens 32768 --steps 40 --variants base,no-align
    python benchmarks/recovery_ablation.py tiny-mistral --variants curve      # perplexity over tokens

Every variant starts from the same dense model, sees the same text in the same order and keeps one seed.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.text.sources import parse_source


@dataclass(frozen=True)
class Row:
    variant: str
    tokens: int
    steps: int
    perplexity: float
    times_dense: float
    density: float
    elapsed_s: float


def variants(base: RelufyConfig) -> dict[str, list[RelufyConfig]]:
    """By name, the runs that follow each other: the second starts from what the first wrote."""
    how = base.training
    peak = how.learning_rate or 0.0

    def trained(**fields: object) -> list[RelufyConfig]:
        return [replace(base, training=replace(how, **fields))]  # type: ignore[arg-type]

    half = trained(steps=how.steps // 2)[0]
    return {
        "base": [base],
        "substituted": [replace(base, recover="none", align=False)],
        "aligned": [replace(base, recover="none")],
        "no alignment": [replace(base, align=False)],
        "FFN alone": trained(train_attention=False),
        "no penalty": trained(target_sparsity=None),
        "target 0.85": trained(target_sparsity=0.85),
        "target 0.9": trained(target_sparsity=0.9),
        "learning rate x 0.4": trained(learning_rate=0.4 * peak),
        "learning rate x 2.5": trained(learning_rate=2.5 * peak),
        "steps x 0.5": [half],
        "steps x 2": trained(steps=how.steps * 2),
        "batch x 0.5, steps x 2": trained(steps=how.steps * 2, batch_tokens=how.batch_tokens // 2),
        "two passes of half the steps": [half, half],
        "tokens x 0.25": [replace(base, tokens=base.tokens // 4)],
        "tokens x 0.5": [replace(base, tokens=base.tokens // 2)],
        "tokens x 2": [replace(base, tokens=base.tokens * 2)],
        "other seed": [replace(base, seed=base.seed + 1)],
    }


def curve(base: RelufyConfig) -> dict[str, list[RelufyConfig]]:
    """Distinct tokens rise and the steps with them, so that each token is seen as often."""
    tokens = [base.tokens * 2**i // 16 for i in range(6)]
    return {
        f"{count} tokens": [
            replace(
                base,
                tokens=count,
                training=replace(base.training, steps=max(8, base.training.steps * count // base.tokens)),
            )
        ]
        for count in tokens
    }


def measure(name: str, runs: list[RelufyConfig], dense: float, scored: EvalConfig) -> Row:
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tsconvert-ablation-") as scratch:
        model = runs[0].model
        for i, run in enumerate(runs):
            out = Path(scratch) / str(i)
            relufy(replace(run, model=model, out=out, teacher=runs[0].model if i else None))
            model = str(out)
        elapsed_s = time.monotonic() - start_s
        found = evaluate(replace(scored, model=model))
    run = runs[-1]
    steps = sum(each.training.steps for each in runs) if run.recover == "local" else 0
    density = sum(found.density) / len(found.density)
    return Row(name, run.tokens, steps, found.perplexity, found.perplexity / dense, density, elapsed_s)


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    training = LocalRecovery(
        steps=arguments.steps, batch_tokens=arguments.batch_tokens, learning_rate=arguments.learning_rate,
        target_sparsity=arguments.target_sparsity,
    )  # fmt: skip
    data = tuple(parse_source(argument) for argument in arguments.data)
    base = RelufyConfig(model=arguments.model, out=Path(), tokens=arguments.tokens, training=training, data=data)
    scored = EvalConfig(model=arguments.model, tokens=8192, method="papers")
    dense = evaluate(scored).perplexity
    print(f"dense: perplexity {dense:.3f}", flush=True)
    found = curve(base) if arguments.variants == "curve" else variants(base)
    chosen = list(found) if arguments.variants in ("all", "curve") else arguments.variants.split(",")
    for name in chosen:
        row = measure(name, found[name], dense, scored)
        print(
            f"{row.variant:30} {row.tokens:8} tokens {row.steps:5} steps  ppl {row.perplexity:10.3f}"
            f"  {row.times_dense:8.3f} times  density {row.density:.3f}  {row.elapsed_s:6.0f} s",
            flush=True,
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--target-sparsity", type=float, default=0.8)
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--variants", default="all", help="all, curve, or names with commas")
    arguments = parser.parse_args()
    rows = [vars(row) for row in measured(arguments)]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    where = {"commit": commit, "cpu": platform.processor(), "threads": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps(where | {"settings": vars(arguments), "rows": rows}))


if __name__ == "__main__":
    main()
