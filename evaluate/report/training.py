"""The report's section on recovery: how each layer's training went, and the whole model's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .elements import LAYERS, Element, Figure, series
from .findings import Findings
from .plots import columns, curves, number, percent

_GOALS = {"cross_entropy": "the text", "divergence": "the dense model's predictions", "hidden": "its hidden states"}


def training(found: Findings) -> Iterator[Element]:
    """How every checkpoint on the way was trained."""
    for record in found.history:
        yield from _sentences(record.figures)
        yield from _layers(record.figures)
        yield from _whole(record.figures.get("full") or {})


def _sentences(report: dict[str, Any]) -> Iterator[str]:
    """What a conversion did."""
    settings, full = report["settings"], report.get("full") or {}
    if report.get("energy_kept"):
        before, after = report["energy_kept"]
        yield (
            f"First each neuron's sign was chosen, which costs no training: dReLU then keeps {percent(after)} of the"
            f" SwiGLU energy instead of {percent(before)}."
        )
    if layers_trained(report):
        local = settings.get("training", {})
        target = local.get("target_sparsity")
        steered = f", steered to {percent(target)} silent neurons" if target else ""
        yield (
            f"Each layer was trained for {local.get('steps', 0):,} steps of {local.get('batch_tokens', 0):,} tokens to"
            " give what the dense layer gives, on the inputs that the already converted layers send it"
            f"{steered}. {report.get('tokens', 0):,} tokens of {_data(settings)} were used,"
            f" {settings.get('context', 0)} a sequence."
        )
    if full:
        yield (
            f"The whole model was trained for {full['steps']:,} steps, {full['tokens']:,} tokens of {_data(settings)}"
            f", towards {_goals(settings.get('full') or {})}; step {full['best_step']:,} was the best."
        )


def layers_trained(report: dict[str, Any]) -> bool:
    """Whether layers were trained one by one; thresholds alone leave a layer's error as it is."""
    layers = report.get("layers") or []
    return any(layer.get("error_before") != layer.get("error_after") for layer in layers)


def _goals(full: dict[str, Any]) -> str:
    """What the loss of the whole model's training is made of."""
    named = [goal for name, goal in _GOALS.items() if full.get(name)]
    return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else "".join(named)


def _data(settings: dict[str, Any]) -> str:
    paths = [Path(source["path"]).name if isinstance(source, dict) else str(source) for source in settings["data"]]
    return ", ".join(paths) or "the embedded text"


def _layers(report: dict[str, Any]) -> Iterator[Figure]:
    layers = report.get("layers") or []
    if report["settings"].get("recover") == "none" or not layers:
        return
    lines = []
    for index, layer in enumerate(layers):
        curve = layer.get("curve") or ()
        if len(curve) > 1:
            lines.append((f"layer {index}", [(k + 0.5) / len(curve) for k in range(len(curve))], curve))
    if lines:
        yield Figure(
            title="Training loss of each layer",
            note="Each token's squared error over its squared norm, from the first step to the last. A bend half way is"
            " where the predictors' mask sets in, if they were trained along.",
            svg=curves(
                "training loss of each layer", lines, x_title="share of the steps", title="error", x_form=percent,
                log=True,
            ),
            legend=LAYERS,
        )  # fmt: skip
    after, before = ([layer[f"error_{when}"] for layer in layers] for when in ("after", "before"))
    if not layers_trained(report):
        return
    yield Figure(
        title="Error of each layer, before and after",
        note="On tokens kept from training: the squared distance of the layer's output from the dense model's, over its"
        " squared norm.",
        svg=columns("error of each layer", after, {"before": before}, title="error", form=number),
        legend=series(("after", "before")),
    )


def _whole(full: dict[str, Any]) -> Iterator[Figure]:
    losses = full.get("losses") or []
    if len(losses) > 1:
        line = ("loss", [float(step) for step, _ in losses], [float(loss) for _, loss in losses])
        yield Figure(
            title="Training loss of the whole model",
            note="Cross-entropy with the text and divergence from the dense model, weighted as it was asked for.",
            svg=curves("loss over steps", [line], x_title="step", title="loss", ordered=False, zero=False),
        )
    evaluations = full.get("evaluations") or []
    if len(evaluations) < 2:
        return
    steps = [float(each["step"]) for each in evaluations]
    lines = [("perplexity", steps, [each["perplexity"] for each in evaluations])]
    if all(each.get("predicted_perplexity") for each in evaluations):
        lines.append(("with the predictors' mask", steps, [each["predicted_perplexity"] for each in evaluations]))
    yield Figure(
        title="Perplexity while the whole model was trained",
        note=f"On held-out text; the dense model has {number(full['dense_perplexity'])}.",
        svg=curves("perplexity over steps", lines, x_title="step", title="perplexity", ordered=False, zero=False),
        legend=series(name for name, _, _ in lines),
    )
    density = [("neurons that fire", steps, [each["density"] for each in evaluations])]
    yield Figure(
        title="Density while the whole model was trained",
        note="Share of the neurons that fire, mean over layers.",
        svg=curves("density over steps", density, x_title="step", title="density", y_form=percent, ordered=False),
    )
