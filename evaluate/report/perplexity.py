"""The report's sections on what the model lost: perplexity, divergence, and how training went."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .elements import Figure, Section, Table
from .findings import Findings
from .plots import columns, curves, ladder
from .svg import measured, number, percent

Score = dict[str, Any]
_STATES = {
    ("none", False): "dReLU put in, nothing trained",
    ("none", True): "signs chosen, nothing trained",
    "local": "recovered layer by layer",
    "full": "recovered as a whole",
}
_ABOUT = (
    "Perplexity is how many tokens the model wavers between, on text that it was not trained on. The Kullback-Leibler"
    " divergence compares its whole distribution with that of the model it is held against: 0 is the same model."
)


def scores(found: Findings) -> list[list[Score]]:
    """The eval results, those on the same text in the same way together; the largest group first."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in found.of("eval"):
        key = tuple(score.get(name) for name in ("method", "context", "stride", "counted", "tokens"))
        groups.setdefault(key, []).append(score)
    return sorted(groups.values(), key=len, reverse=True)


def is_source(found: Findings, model: str) -> bool:
    """Whether ``model`` is the dense one that everything was made from."""
    return found.source is not None and found.name(model) == found.source


def dense_perplexity(found: Findings, group: Sequence[Score]) -> float | None:
    """That of the dense model, on a group's text."""
    for score in group:
        if is_source(found, score["model"]):
            return float(score["perplexity"])
        if score.get("against") and is_source(found, score["against"]) and score.get("against_perplexity"):
            return float(score["against_perplexity"])
    return None


def perplexity(found: Findings) -> Section | None:
    """The ladder of perplexities, and divergences."""
    groups = scores(found)
    if not groups:
        return _held_out(found)
    figures, tables = [], []
    for group in groups:
        dense = dense_perplexity(found, group)
        rows = [
            (label(found, score), float(score["perplexity"]), _times(score["perplexity"], dense)) for score in group
        ]
        log = max(value for _, value, _ in rows) > 4 * min(value for _, value, _ in rows)
        figures.append(
            Figure(
                title=f"Perplexity on {_text(group[0])}",
                note="Lower is better."
                + (" The dashed line is the dense model." if dense else "")
                + (" The scale is logarithmic." if log else ""),
                svg=ladder("perplexity of each model and mode", rows, reference=dense, log=log),
                wide=True,
            )
        )
        if any(score.get("kl_mean") is not None for score in group):
            tables.append(_divergences(found, group))
    return Section(id="perplexity", title="What it costs", text=(_ABOUT,), figures=tuple(figures), tables=tuple(tables))


def _held_out(found: Findings) -> Section | None:
    """Without an eval: what relufy itself measured."""
    sparse = found.sparse
    if sparse is None or not sparse.figures.get("perplexity"):
        return None
    dense = float(sparse.figures["dense_perplexity"])
    rows = [("dense", dense, _times(dense, dense))]
    rows.append(
        (found.name(sparse.path), float(sparse.figures["perplexity"]), _times(sparse.figures["perplexity"], dense))
    )
    figure = Figure(
        title="Perplexity on the sequences that relufy kept from training",
        note="Lower is better.",
        svg=ladder("perplexity before and after", rows, reference=dense, log=False),
        wide=True,
    )
    return Section(id="perplexity", title="What it costs", figures=(figure,))


def label(found: Findings, score: Score) -> str:
    """The model of a score, with the runner's mode."""
    name = found.name(score["model"])
    if score.get("mode") not in (None, "checkpoint"):
        return f"{name}, {score['mode']}"
    settings = {found.name(record.path): record.figures.get("settings") for record in found.checkpoints}.get(name)
    if is_source(found, score["model"]):
        return name if name == "dense" else f"{name}: dense"
    if not settings:
        return name
    how = settings.get("recover", "")
    return f"{name}: {_STATES.get((how, bool(settings.get('align'))) if how == 'none' else how, how)}"


def _text(score: Score) -> str:
    counted = score.get("counted") or score.get("tokens") or 0
    how = f", {score['method']} method, windows of {score['context']}" if score.get("method") else ""
    return f"{counted:,} tokens of held-out text{how}"


def _times(value: float, dense: float | None) -> str:
    return measured(value) + (f" · {measured(value / dense)} ×" if dense else "")


def _divergences(found: Findings, group: Sequence[Score]) -> Table:
    rows = []
    for score in group:
        if score.get("kl_mean") is None:
            continue
        rows.append(
            (
                label(found, score).partition(":")[0],
                found.name(score["against"]),
                *(_maybe(score.get(key)) for key in ("kl_mean", "kl_median", "kl_99", "kl_max")),
                percent(score["top1_agreement"]) if score.get("top1_agreement") is not None else "–",
            )
        )
    return Table(
        head=("model", "held against", "KL mean", "median", "99 %", "largest", "same first choice"), rows=rows,
        note="KL divergence in nats a token, between the two models' next-token distributions.",
    )  # fmt: skip


def _maybe(value: float | None) -> str:
    return "–" if value is None else f"{max(0.0, value):.4f}"


def training(found: Findings) -> Section | None:
    """How each layer's training went, and the whole model's; of every checkpoint on the way."""
    figures: list[Figure] = []
    text: list[str] = []
    for record in found.history:
        figures += [*_layers(record.figures), *_whole(record.figures.get("full"))]
        text += _told(record.figures)
    return (
        Section(id="training", title="How it was recovered", text=tuple(text), figures=tuple(figures))
        if figures
        else None
    )


def _told(report: dict[str, Any]) -> Iterator[str]:
    """What a conversion did, in sentences."""
    settings = report["settings"]
    how, whole = settings.get("training", {}), report.get("full") or {}
    if report.get("energy_kept"):
        before, after = report["energy_kept"]
        yield (
            f"First each neuron's sign was chosen, which costs no training: dReLU then keeps {percent(after)} of the"
            f" SwiGLU energy instead of {percent(before)}."
        )
    if report.get("layers") and settings.get("recover") != "none":
        goal = how.get("target_sparsity")
        aim = f", steered to {percent(goal)} silent neurons" if goal else ""
        yield (
            f"Each layer was trained for {how.get('steps', 0):,} steps of {how.get('batch_tokens', 0):,} tokens to give"
            f" what the dense layer gives, on the inputs that the already converted layers send it{aim}."
            f" {report.get('tokens', 0):,} tokens of {_data(settings)} were used, {settings.get('context', 0)} a"
            " sequence."
        )
    if whole:
        yield (
            f"The whole model was trained for {whole['steps']:,} steps, {whole['tokens']:,} tokens of {_data(settings)}"
            f", towards {_goals(settings.get('full') or {})}; step {whole['best_step']:,} was the best."
        )


def _goals(full: dict[str, Any]) -> str:
    """What the loss of the whole model's training is made of."""
    goals = {
        "cross_entropy": "the text", "divergence": "the dense model's predictions", "hidden": "its hidden states"
    }  # fmt: skip
    named = [goal for name, goal in goals.items() if full.get(name)]
    return " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else "".join(named)


def _data(settings: dict[str, Any]) -> str:
    paths = [Path(source["path"]).name if isinstance(source, dict) else str(source) for source in settings["data"]]
    return ", ".join(paths) or "the embedded text"


def _layers(report: dict[str, Any]) -> Iterator[Figure]:
    layers = report.get("layers") or []
    if report["settings"].get("recover") == "none" or not layers:
        return
    lines = [
        (f"layer {i}", [(k + 0.5) / len(layer["curve"]) for k in range(len(layer["curve"]))], layer["curve"])
        for i, layer in enumerate(layers)
        if len(layer.get("curve") or ()) > 1
    ]
    if lines:
        yield Figure(
            title="Training loss of each layer",
            note="Each token's squared error over its squared norm, from the first step to the last. A bend half way is"
            " where the predictors' mask sets in, if they were trained along.",
            svg=curves(
                "training loss of each layer",
                lines,
                x_title="share of the steps",
                title="error",
                x_form=percent,
                log=True,
            ),
            legend=(("early", "first layer"), ("late", "last layer")),
        )
    after, before = ([layer[f"error_{when}"] for layer in layers] for when in ("after", "before"))
    yield Figure(
        title="Error of each layer, before and after",
        note="On tokens kept from training: the squared distance of the layer's output from the dense model's, over its"
        " squared norm.",
        svg=columns("error of each layer", after, {"before": before}, title="error", form=number),
        legend=(("s0", "after"), ("s1", "before")),
    )


def _whole(full: dict[str, Any] | None) -> Iterator[Figure]:
    losses = (full or {}).get("losses") or []
    if len(losses) > 1:
        line = ("loss", [float(step) for step, _ in losses], [float(loss) for _, loss in losses])
        yield Figure(
            title="Training loss of the whole model",
            note="Cross-entropy with the text and divergence from the dense model, weighted as it was asked for.",
            svg=curves("loss over steps", [line], x_title="step", title="loss", ordered=False, zero=False),
        )
    looks = (full or {}).get("evaluations") or []
    if len(looks) < 2:
        return
    steps = [float(look["step"]) for look in looks]
    lines = [("perplexity", steps, [look["perplexity"] for look in looks])]
    if all(look.get("predicted_perplexity") for look in looks):
        lines.append(("with the predictors' mask", steps, [look["predicted_perplexity"] for look in looks]))
    yield Figure(
        title="Perplexity while the whole model was trained",
        note=f"On held-out text; the dense model has {number((full or {})['dense_perplexity'])}.",
        svg=curves("perplexity over steps", lines, x_title="step", title="perplexity", ordered=False, zero=False),
        legend=tuple((f"s{i}", name) for i, (name, _, _) in enumerate(lines)),
    )
    density = [("neurons that fire", steps, [look["density"] for look in looks])]
    yield Figure(
        title="Density while the whole model was trained",
        note="Share of the neurons that fire, mean over layers.",
        svg=curves("density over steps", density, x_title="step", title="density", y_form=percent, ordered=False),
    )
