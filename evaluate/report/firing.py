"""The report's section on which neurons fire, how often, and how few make most activations."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ...predictors.profile.file import Profile
from .elements import LAYERS, Element, Figure, series
from .findings import Findings
from .plots import columns, curves, heat_map, histogram, percent
from .predictors import layer_means

_BINS = 40
_ABOUT = (
    "A neuron fires for a token when its activation is not zero. The rows of the weight matrices that belong to a"
    " silent neuron need not be read: that is where the speed comes from."
)


@dataclass(frozen=True, kw_only=True)
class LayerDensity:
    """Share of each layer's neurons that fire, all from one record, so that all figures are of the same tokens."""

    fires: list[float]
    others: dict[str, list[float]] = field(default_factory=dict)
    """Further shares by what they are."""
    tokens: str
    """On which tokens they were counted."""

    @property
    def mean(self) -> float:
        """Mean over layers."""
        return sum(self.fires) / len(self.fires)


def layer_density(found: Findings) -> LayerDensity | None:
    """The densities of the record that knows most; None if no record has any."""
    predictors, scored = found.best_predictors, [score for score in found.of("eval") if score.get("density")]
    if predictors is not None:
        ffns = predictors.figures["ffns"]
        named, gate = layer_means(ffns, "predicted_density"), layer_means(ffns, "gate_density")
        tokens = f"the predictors' calibration tokens ({found.name(predictors.path)})"
        others = {"named by the predictor": named, "gate positive": gate}
        return LayerDensity(fires=layer_means(ffns, "density"), others=others, tokens=tokens)
    if found.profiles:
        record, profile = found.profiles[-1]
        others = {"gate positive": [layer.gate_density for layer in profile.layers]}
        tokens = f"{sum(profile.tokens):,} tokens ({found.name(record.path)})"
        return LayerDensity(fires=[layer.density for layer in profile.layers], others=others, tokens=tokens)
    if scored:
        score = max(scored, key=lambda each: len(each.get("predicted_density") or ()))
        foreseen = score.get("predicted_density")
        others = {"named by the predictor": foreseen} if foreseen else {}
        tokens = f"{score['tokens']:,} tokens that {found.name(score['model'])} was scored on"
        return LayerDensity(fires=score["density"], others=others, tokens=tokens)
    if found.sparse is None:
        return None
    figures = found.sparse.figures
    whole = (figures.get("full") or {}).get("density")
    fires = list(whole or [layer["density"] for layer in figures.get("layers") or ()])
    return LayerDensity(fires=fires, tokens="the tokens that recovery kept from training") if fires else None


def firing(found: Findings) -> Iterator[Element]:
    """Density per layer and expert, how often neurons fire, how few make most activations."""
    yield _ABOUT
    if density := layer_density(found):
        yield _density(density)
    profile = found.profiles[-1][1] if found.profiles else None
    if profile:
        yield _rates(profile)
    yield from _experts(found)
    if profile:
        yield _most_active(profile)
        yield from _together(profile)


def _density(density: LayerDensity) -> Figure:
    notes = f"Share of each layer's neurons, on {density.tokens}. Mean {percent(density.mean)}."
    if "gate positive" in density.others:
        notes += " Exact mode reads the gate of all neurons, and up and down where the gate is positive."
    return Figure(
        title="Density of each layer",
        note=notes,
        svg=columns("density of each layer", density.fires, density.others, title="share of the neurons"),
        legend=series(("fires", *density.others)),
    )


def _experts(found: Findings) -> Iterator[Figure]:
    scored = [score for score in found.of("eval") if score.get("expert_density")]
    if found.profiles and found.profiles[-1][1].layers[0].counts_CEF.shape[1] > 1:
        layers = found.profiles[-1][1].layers
        density = [layer.densities_E for layer in layers]
        tokens = [(layer.tokens_CE.sum(0) / max(1, layer.tokens_CE.sum())).tolist() for layer in layers]
    elif scored:
        density, tokens = scored[-1]["expert_density"], scored[-1]["expert_tokens"]
    else:
        return
    for of, note, rows in (
        ("Density", "Share of an expert's neurons that fire for a token that was routed to it.", density),
        ("Tokens", "Share of a layer's routed tokens that each expert saw.", tokens),
    ):
        svg = heat_map(f"{of.lower()} of each expert", rows, title="expert")
        yield Figure(title=f"{of} of each expert", note=note, svg=svg)


def _rates(profile: Profile) -> Figure:
    """How often each neuron fires, as a share of the tokens that its FFN saw."""
    counts = ((layer.counts_CEF.sum(0), np.maximum(1, layer.tokens_CE.sum(0))) for layer in profile.layers)
    rates = np.concatenate([(counts_EF / tokens_E[:, None]).ravel() for counts_EF, tokens_E in counts])
    top = min(1.0, max(0.05, float(np.ceil(rates.max() * 20) / 20)))
    heights, edges = np.histogram(rates, bins=_BINS, range=(0.0, top))
    never, seldom = int((rates == 0).sum()), float((rates < 0.05).mean())
    dead = f"{never:,} never fired. " if never else "Every neuron fired at least once. "
    return Figure(
        title="How often neurons fire",
        note=f"All {rates.size:,} neurons, by the share of {sum(profile.tokens):,} tokens for which they fire. {dead}"
        f"{percent(seldom)} of them fire for fewer than one token in twenty.",
        svg=histogram(
            "histogram of firing rates", edges.tolist(), heights.tolist(),
            x_title="share of the tokens for which a neuron fires", title="neurons",
        ),
    )  # fmt: skip


def _most_active(profile: Profile) -> Figure:
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
        legend=LAYERS,
    )  # fmt: skip


def _together(profile: Profile) -> Iterator[Figure]:
    widths = sorted(profile.layers[0].union)
    if len(widths) < 2:
        return
    shares = [[layer.union.get(width, 0.0) for width in widths] for layer in profile.layers]
    lines = [(f"layer {i}", list(map(float, range(len(widths)))), row) for i, row in enumerate(shares)]
    last = sum(row[-1] for row in shares) / len(shares)
    yield Figure(
        title="Neurons that several tokens need together",
        note="When consecutive tokens are computed at once, every neuron that one of them needs is read."
        f" {widths[-1]} tokens need {percent(last)} of a layer's neurons, mean over layers.",
        svg=curves(
            "neurons needed by several tokens together", lines, x_title="consecutive tokens",
            title="share of the neurons", y_form=percent, x_form=lambda at: str(widths[round(at)]),
        ),
        legend=LAYERS,
    )  # fmt: skip
