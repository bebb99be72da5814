"""What each part of full recovery is worth: variants of one run at equal tokens, each scored on held-out text.

    python benchmarks/full_ablation.py tiny-mistral                          # a table, then one JSON line
    python benchmarks/full_ablation.py tiny-mistral --full-tokens 65536 --variants "+ KL,+ hidden states"

All variants train the whole model on the same tokens in the same order. Each line adds one part to the one above.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.embedded import text
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.text.sources import Source


@dataclass(frozen=True)
class Row:
    variant: str
    perplexity: float
    times_dense: float
    density: float
    elapsed_s: float


@dataclass(frozen=True)
class Variant:
    """How the model starts, and how it is trained as a whole."""

    first: RelufyConfig
    full: FullRecovery


def variants(base: RelufyConfig, full: FullRecovery) -> dict[str, Variant]:
    goal = full.target_sparsity
    bare = replace(base, recover="none", align=False)
    aligned = replace(base, recover="none")
    entropy = replace(full, cross_entropy=1.0, divergence=0.0, target_sparsity=None)
    distilled = replace(entropy, divergence=1.0)
    local = replace(base, training=replace(base.training, target_sparsity=goal, silenced_by="l1"))
    return {
        "no alignment no local": Variant(bare, entropy),
        "+ alignment": Variant(aligned, entropy),
        "+ local": Variant(replace(base, training=replace(base.training, target_sparsity=None)), entropy),
        "+ KL": Variant(replace(base, training=replace(base.training, target_sparsity=None)), distilled),
        "+ hidden states": Variant(
            replace(base, training=replace(base.training, target_sparsity=None)), replace(distilled, hidden=1.0)
        ),
        "local with target and KL": Variant(local, distilled),
        "+ L1 controller": Variant(local, replace(distilled, target_sparsity=goal)),
        "+ L1 controller and hidden": Variant(local, replace(distilled, target_sparsity=goal, hidden=1.0)),
        "L1 as ProSparse's sine": Variant(local, replace(distilled, penalty="sine", target_sparsity=None)),
        "KL alone with L1 controller": Variant(local, replace(distilled, cross_entropy=0.0, target_sparsity=goal)),
        "ReLU on the gate with L1 controller": Variant(
            replace(local, activation="reglu"), replace(distilled, target_sparsity=goal)
        ),
    }


def measure(name: str, variant: Variant, dense: float, scored: EvalConfig) -> Row:
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tsconvert-ablation-") as scratch:
        first, last = Path(scratch) / "first", Path(scratch) / "last"
        relufy(replace(variant.first, out=first))
        run = replace(variant.first, model=str(first), teacher=variant.first.model, out=last, recover="full")
        relufy(replace(run, training=replace(run.training, target_sparsity=None), full=variant.full))
        elapsed_s = time.monotonic() - start_s
        found = evaluate(replace(scored, model=str(last)))
    density = sum(found.density) / len(found.density)
    return Row(name, found.perplexity, found.perplexity / dense, density, elapsed_s)


def measured(arguments: argparse.Namespace) -> Iterator[Row]:
    training = LocalRecovery(steps=arguments.steps)
    base = RelufyConfig(model=arguments.model, out=Path(), tokens=arguments.tokens, training=training)
    full = FullRecovery(
        tokens=arguments.full_tokens, target_sparsity=arguments.target_sparsity, evaluations=1,
        learning_rate=arguments.learning_rate,
    )  # fmt: skip
    scored = EvalConfig(
        model=arguments.model, data=(Source(path=str(text("heldout.txt"))),), tokens=16_384, method="papers"
    )
    dense = evaluate(scored).perplexity
    print(f"dense: perplexity {dense:.3f}", flush=True)
    found = variants(base, full)
    for name in arguments.variants.split(",") if arguments.variants else found:
        row = measure(name, found[name], dense, scored)
        print(
            f"{row.variant:34} ppl {row.perplexity:10.3f}  {row.times_dense:8.3f} times  density {row.density:.3f}"
            f"  {row.elapsed_s:6.0f} s",
            flush=True,
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=32_768, help="of the local stage")
    parser.add_argument("--steps", type=int, default=100, help="of the local stage, a layer")
    parser.add_argument("--full-tokens", type=int, default=196_608)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--target-sparsity", type=float, default=0.9)
    parser.add_argument("--variants", help="names, separated by commas; default: all")
    arguments = parser.parse_args()
    rows = list(measured(arguments))
    print(json.dumps({"settings": vars(arguments), "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
