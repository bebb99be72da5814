"""The report's sections on neurons: how many fire, which ones, and how well they are foreseen."""

from typing import Any

import numpy as np

from ...predictors.profile.file import Profile
from ..records.outputs import Record
from .elements import Figure, Section, Table
from .findings import Findings
from .plots import columns, curves, heat, histogram, points
from .svg import percent

_BINS = 40
_ABOUT = (
    "A neuron fires for a token when its activation is not zero. The rows of the weight matrices that belong to a"
    " silent neuron need not be read: that is where the speed comes from."
)


def activity(found: Findings) -> Section | None:
    """Density per layer and expert, how often neurons fire, how few make most activations."""
    figures: list[Figure] = []
    by_layer = _density(found)
    if by_layer is not None:
        figures.append(by_layer)
    profile = found.profiles[-1][1] if found.profiles else None
    if profile is not None:
        figures.append(_firing(profile))
    figures += _experts(found)
    if profile is not None:
        figures += [_hot(profile), *_together(profile)]
    if not figures:
        return None
    return Section(id="activity", title="Which neurons fire", text=(_ABOUT,), figures=tuple(figures))


def layer_means(ffns: list[dict[str, Any]], name: str) -> list[float]:
    """A field of the predictors' reports, per layer: the mean over its experts that have a predictor."""
    layers = sorted({ffn["layer"] for ffn in ffns})
    values = [[ffn[name] for ffn in ffns if ffn["layer"] == layer and ffn.get("used", True)] for layer in layers]
    return [sum(each) / len(each) if each else 0.0 for each in values]


def recorded_density(sparse: Record) -> list[float]:
    """Per layer, as recovery measured it in the end."""
    whole = sparse.figures.get("full") or {}
    return list(whole.get("density") or [layer["density"] for layer in sparse.figures.get("layers") or ()])


def _density(found: Findings) -> Figure | None:
    """From the one record that knows most, so that all its figures are of the same tokens."""
    predictors = found.best_predictors
    bars: list[float] = []
    marks: dict[str, list[float]] = {}
    where = ""
    scored = [score for score in found.of("eval") if score.get("density")]
    if predictors is not None:
        ffns = predictors.figures["ffns"]
        bars = layer_means(ffns, "density")
        marks = {
            "named by the predictor": layer_means(ffns, "predicted_density"),
            "gate positive": layer_means(ffns, "gate_density"),
        }
        where = f"the predictors' calibration tokens ({found.name(predictors.path)})"
    elif found.profiles:
        record, profile = found.profiles[-1]
        bars = [layer.density for layer in profile.layers]
        marks = {"gate positive": [layer.gate_density for layer in profile.layers]}
        where = f"{sum(profile.tokens):,} tokens ({found.name(record.path)})"
    elif scored:
        score = max(scored, key=lambda each: len(each.get("predicted_density") or ()))
        bars = score["density"]
        marks = {"named by the predictor": score["predicted_density"]} if score.get("predicted_density") else {}
        where = f"{score['tokens']:,} tokens that {found.name(score['model'])} was scored on"
    elif found.sparse is not None:
        bars = recorded_density(found.sparse)
        where = "the tokens that recovery kept from training"
    if not bars:
        return None
    notes = f"Share of each layer's neurons, on {where}. Mean {percent(sum(bars) / len(bars))}."
    if "gate positive" in marks:
        notes += " Exact mode reads the gate of all neurons, and up and down where the gate is positive."
    legend = (("s0", "fires"), *((f"s{i}", name) for i, name in enumerate(marks, 1)))
    svg = columns("density of each layer", bars, marks, title="share of the neurons")
    return Figure(title="Density of each layer", note=notes, svg=svg, legend=legend)


def _experts(found: Findings) -> list[Figure]:
    if found.profiles and found.profiles[-1][1].layers[0].counts_CEF.shape[1] > 1:
        layers = found.profiles[-1][1].layers
        density = [layer.densities_E for layer in layers]
        tokens = [(layer.tokens_CE.sum(0) / max(1, layer.tokens_CE.sum())).tolist() for layer in layers]
    else:
        scored = [score for score in found.of("eval") if score.get("expert_density")]
        if not scored:
            return []
        density, tokens = scored[-1]["expert_density"], scored[-1]["expert_tokens"]
    return [
        Figure(
            title="Density of each expert",
            note="Share of an expert's neurons that fire for a token that was routed to it.",
            svg=heat("density of each expert", density, title="expert"),
        ),
        Figure(
            title="Tokens of each expert",
            note="Share of a layer's routed tokens that each expert saw.",
            svg=heat("tokens of each expert", tokens, title="expert"),
        ),
    ]


def _rates(profile: Profile) -> "np.typing.NDArray[np.float64]":
    """How often each neuron of the model fires, as a share of the tokens that its FFN saw."""
    rates = []
    for layer in profile.layers:
        tokens_E = np.maximum(1, layer.tokens_CE.sum(0))
        rates.append((layer.counts_CEF.sum(0) / tokens_E[:, None]).ravel())
    return np.concatenate(rates)


def _firing(profile: Profile) -> Figure:
    rates = _rates(profile)
    top = min(1.0, max(0.05, float(np.ceil(rates.max() * 20) / 20)))
    counts, edges = np.histogram(rates, bins=_BINS, range=(0.0, top))
    never, seldom = int((rates == 0).sum()), float((rates < 0.05).mean())
    dead = f"{never:,} never fired. " if never else "Every neuron fired at least once. "
    return Figure(
        title="How often neurons fire",
        note=f"All {rates.size:,} neurons, by the share of {sum(profile.tokens):,} tokens for which they fire. {dead}"
        f"{percent(seldom)} of them fire for fewer than one token in twenty.",
        svg=histogram(
            "histogram of firing rates", edges.tolist(), counts.tolist(),
            x_title="share of the tokens for which a neuron fires", title="neurons",
        ),
    )  # fmt: skip


def _hot(profile: Profile) -> Figure:
    lines = []
    for index, layer in enumerate(profile.layers):
        counts = np.sort(layer.counts_CEF.sum(0).ravel())[::-1]
        made = np.concatenate([[0.0], np.cumsum(counts) / max(1, counts.sum())])
        at = np.unique(np.linspace(0, counts.size, 41).round().astype(int))
        lines.append((f"layer {index}", (at / counts.size).tolist(), made[at].tolist()))
    hot80 = sum(layer.hot80 for layer in profile.layers) / len(profile.layers)
    return Figure(
        title="Hot neurons",
        note=f"Share of all activations that the most frequent neurons make. {percent(hot80)} of the neurons make 80 %,"
        " mean over layers; the earlier a curve rises, the fewer neurons do most of the work.",
        svg=curves(
            "share of activations by share of neurons", lines, x_title="share of the neurons, hottest first",
            title="share of the activations", x_form=percent, y_form=percent,
        ),
        legend=(("early", "first layer"), ("late", "last layer")),
    )  # fmt: skip


def _together(profile: Profile) -> list[Figure]:
    widths = sorted(profile.layers[0].union)
    if len(widths) < 2:
        return []
    lines = [
        (f"layer {i}", [float(n) for n in range(len(widths))], [layer.union.get(width, 0.0) for width in widths])
        for i, layer in enumerate(profile.layers)
    ]
    last = sum(layer.union.get(widths[-1], 0.0) for layer in profile.layers) / len(profile.layers)
    return [
        Figure(
            title="Neurons that several tokens need together",
            note="When consecutive tokens are computed at once, every neuron that one of them needs is read."
            f" {widths[-1]} tokens need {percent(last)} of a layer's neurons, mean over layers.",
            svg=curves(
                "neurons needed by several tokens together", lines, x_title="consecutive tokens",
                title="share of the neurons", y_form=percent, x_form=lambda at: str(widths[round(at)]),
            ),
            legend=(("early", "first layer"), ("late", "last layer")),
        )
    ]  # fmt: skip


def predictors(found: Findings) -> Section | None:
    """What the predictors find, and at what price."""
    record = found.best_predictors
    if record is None:
        return None
    ffns = [ffn for ffn in record.figures["ffns"] if ffn.get("used", True)]
    if not ffns:
        return None
    moe = any(ffn["expert"] for ffn in ffns)
    report = record.figures
    exact, named = report.get("perplexity_exact"), report.get("perplexity_predicted")
    text = [
        (
            f"{len(ffns)} of {len(report['ffns'])} FFNs have a predictor ({report.get('method', 'trained')}), with"
            f" {report.get('predictor_parameters', 0):,} weights in all, {percent(report.get('size_share', 0.0))} of"
            " the model's."
        )
    ]
    if exact and named:
        text.append(
            f"On sequences kept from training, perplexity is {named:.2f} when only the named neurons are computed and"
            f" {exact:.2f} when all are: {percent(named / exact - 1)} more."
        )
    return Section(
        id="predictors", title="How well firing is foreseen", text=tuple(text),
        figures=(_recall(ffns, moe), _energy(ffns)), tables=(_table(ffns, moe),) if len(ffns) <= 80 else (),
    )  # fmt: skip


def _recall(ffns: list[dict[str, Any]], moe: bool) -> Figure:
    dots = [
        (ffn["predicted_density"], ffn["recall"],
         f"layer {ffn['layer']}" + (f", expert {ffn['expert']}" if moe else "")
         + f": names {percent(ffn['predicted_density'])}, finds {percent(ffn['recall'])}")
        for ffn in ffns
    ]  # fmt: skip
    return Figure(
        title="Recall against predicted density",
        note="Each " + ("dot is an expert" if moe else "disc is a layer, by its number") + ": further to the left reads"
        " less, further up misses less. Naming neurons by chance would lie on the dashed line.",
        svg=points(
            "recall against predicted density", {"": dots}, x_title="share of the neurons named",
            title="share of the firing neurons found",
            numbers=not moe and len(dots) <= 48, diagonal="by chance",
        ),
    )  # fmt: skip


def _energy(ffns: list[dict[str, Any]]) -> Figure:
    return Figure(
        title="Energy that the named neurons carry",
        note="Share of the activation energy (h · |down|)²: a missed neuron costs what it carries. The dash is the"
        " recall, which counts strong and faint neurons alike.",
        svg=columns(
            "energy kept in each layer",
            layer_means(ffns, "energy"),
            {"recall": layer_means(ffns, "recall")},
            title="share",
        ),
        legend=(("s0", "energy"), ("s1", "recall")),
    )


def _table(ffns: list[dict[str, Any]], moe: bool) -> Table:
    head = ("layer", *(("expert",) if moe else ()), "rank", "fires", "named", "recall", "precision", "energy")
    rows = [
        (
            str(ffn["layer"]), *((str(ffn["expert"]),) if moe else ()), str(ffn["rank"]),
            *(percent(ffn[name]) for name in ("density", "predicted_density", "recall", "precision", "energy")),
        )
        for ffn in ffns
    ]  # fmt: skip
    return Table(head=head, rows=rows)
