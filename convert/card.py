"""The model card of a recovered checkpoint: recipe, tokens, curves, sparsity of each layer, what to compare with."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..common.command_line import typed
from ..common.files import atomic_file
from ..model.checkpoint import Checkpoint
from .config import RelufyConfig
from .report import FullResult, RelufyReport

_CURVE_LINES = 24


def write_card(folder: Path, config: RelufyConfig, report: RelufyReport, model: Checkpoint) -> None:
    """README.md of the checkpoint in ``folder``."""
    with atomic_file(folder / "README.md") as stream:
        stream.write("\n".join(_lines(config, report, model)).encode() + b"\n")


def _lines(config: RelufyConfig, report: RelufyReport, model: Checkpoint) -> Iterator[str]:
    full = report.full
    assert full is not None
    dense = config.teacher or config.model
    yield f"# {config.out.name}"
    yield f"\n{dense} with {model.spec.activation} in place of SwiGLU, {report.parameters / 1e6:,.1f}M parameters."
    yield "\n## On text kept from training\n\n| | perplexity | times dense |\n|---|---|---|"
    yield f"| dense | {full.dense_perplexity:.2f} | 1.000 |"
    if full.baseline is not None:
        ratio = full.baseline / full.dense_perplexity
        yield f"| dense, trained on the same tokens | {full.baseline:.2f} | {ratio:.3f} |"
    yield f"| this model | {full.perplexity:.2f} | {full.perplexity / full.dense_perplexity:.3f} |"
    if full.baseline is not None:
        yield f"\nAgainst the dense model after the same tokens: {full.perplexity / full.baseline:.3f} times."
    else:
        yield "\nWhat training on these tokens would do to the dense model was not measured (--baseline does)."
    beside = f" --baseline {config.out}.baseline" if full.baseline is not None else ""
    judge = f"tsconvert eval {config.out} --data TEXT --tasks TASKS --baseline {dense}{beside}"
    yield f"\nText and tasks of kinds that it was not recovered on say more: `{judge}`."
    silent = ", ".join(f"{1 - density:.1%}" for density in full.density)
    yield f"\nSilent neurons, by layer: {silent}; {1 - sum(full.density) / len(full.density):.1%} on average."
    if report.shift is not None:
        now = f"{1 - report.shift.density:.1%} silent, perplexity {report.shift.perplexity:.2f}"
        yield f"\nThen thresholds were set (`ffn_thresholds` in config.json): {now}."
    yield "\n## Recipe\n"
    yield f"    {typed()}\n"
    layers = "the first thresholds" if config.layer_stage.recover == "none" else "local recovery"
    data = ", ".join(f"{source.path} ({source.weight:g})" for source in config.data) or "the embedded English text"
    yield f"- Text: {data}; {report.tokens:,} tokens for {layers}, {full.tokens:,} for the whole model."
    settings = {name: value for name, value in asdict(config.full).items() if name not in config.full.unused}
    yield "- Of the whole model: " + ", ".join(f"{name} {value}" for name, value in settings.items()) + "."
    yield from _curves(full)


def _curves(full: FullResult) -> Iterator[str]:
    yield "\n## Curves\n\n| step | perplexity | under the predictors' mask | silent |\n|---|---|---|---|"
    for evaluation in full.evaluations:
        masked = "" if evaluation.predicted_perplexity is None else f"{evaluation.predicted_perplexity:.2f}"
        yield f"| {evaluation.step} | {evaluation.perplexity:.2f} | {masked} | {1 - evaluation.density:.1%} |"
    yield f"\nThe model is that of step {full.best_step}. Training loss:\n\n| step | loss |\n|---|---|"
    for step, loss in full.losses[:: -(-len(full.losses) // _CURVE_LINES) or 1]:
        yield f"| {step} | {loss:.4f} |"
