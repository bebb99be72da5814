"""The report's section on how well the predictors foresee what fires, and at what price."""

from collections.abc import Iterator
from typing import Any

from .elements import Element, Figure, Table, series
from .findings import Findings
from .plots import columns, percent, scatter

_MOST_ROWS = 80


def layer_means(ffns: list[dict[str, Any]], name: str) -> list[float]:
    """A field of the predictors' reports, per layer: the mean over its experts that have a predictor."""
    layers = sorted({ffn["layer"] for ffn in ffns})
    values = [[ffn[name] for ffn in ffns if ffn["layer"] == layer and ffn.get("used", True)] for layer in layers]
    return [sum(each) / len(each) if each else 0.0 for each in values]


def predictors(found: Findings) -> Iterator[Element]:
    """What the predictors find, and at what price."""
    record = found.best_predictors
    report = record.figures if record else {"ffns": []}
    ffns = [ffn for ffn in report["ffns"] if ffn.get("used", True)]
    if not ffns:
        return
    exact, named = report.get("perplexity_exact"), report.get("perplexity_predicted")
    yield (
        f"{len(ffns)} of {len(report['ffns'])} FFNs have a predictor ({report.get('method', 'trained')}), with"
        f" {report.get('predictor_parameters', 0):,} weights in all, {percent(report.get('size_share', 0.0))} of the"
        " model's."
    )
    if exact and named:
        yield (
            f"On sequences kept from training, perplexity is {named:.2f} when only the named neurons are computed and"
            f" {exact:.2f} when all are: {percent(named / exact - 1)} more."
        )
    moe = any(ffn["expert"] for ffn in ffns)
    yield _recall(ffns, moe)
    yield _energy(ffns)
    if len(ffns) <= _MOST_ROWS:
        yield _table(ffns, moe)


def _recall(ffns: list[dict[str, Any]], moe: bool) -> Figure:
    dots = []
    for ffn in ffns:
        where = f"layer {ffn['layer']}" + (f", expert {ffn['expert']}" if moe else "")
        named, recall = ffn["predicted_density"], ffn["recall"]
        dots.append((named, recall, f"{where}: names {percent(named)}, finds {percent(recall)}"))
    return Figure(
        title="Recall against predicted density",
        note="Each " + ("dot is an expert" if moe else "disc is a layer, by its number") + ": further to the left reads"
        " less, further up misses less. Naming neurons by chance would lie on the dashed line.",
        svg=scatter(
            "recall against predicted density", dots, x_title="share of the neurons named",
            title="share of the firing neurons found", numbers=not moe and len(dots) <= 48, diagonal="by chance",
        ),
    )  # fmt: skip


def _energy(ffns: list[dict[str, Any]]) -> Figure:
    energy, recall = layer_means(ffns, "energy"), layer_means(ffns, "recall")
    return Figure(
        title="Energy that the named neurons carry",
        note="Share of the activation energy (h · |down|)²: a missed neuron costs what it carries. The dash is the"
        " recall, which counts strong and faint neurons alike.",
        svg=columns("energy kept in each layer", energy, {"recall": recall}, title="share"),
        legend=series(("energy", "recall")),
    )


def _table(ffns: list[dict[str, Any]], moe: bool) -> Table:
    which = ("layer", "expert", "rank") if moe else ("layer", "rank")
    shares = ("density", "predicted_density", "recall", "precision", "energy")
    rows = [[*(str(ffn[name]) for name in which), *(percent(ffn[name]) for name in shares)] for ffn in ffns]
    return Table(head=(*which, "fires", "named", "recall", "precision", "energy"), rows=rows)
