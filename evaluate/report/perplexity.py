"""The report's section on what sparsity cost: perplexity, and divergence from the dense model."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..records.measures import rows
from .elements import Element, Figure, Table
from .findings import Findings
from .plots import horizontal_bars, measured, percent

Score = dict[str, Any]
"""One result of `tsconvert eval`."""
_STATES = {
    "none": "dReLU put in, nothing trained",
    "aligned": "signs chosen, nothing trained",
    "local": "recovered layer by layer",
    "full": "recovered as a whole",
}
_ABOUT = (
    "Perplexity is how many tokens the model wavers between, on text that it was not trained on. The Kullback-Leibler"
    " divergence compares its whole distribution with that of the model it is held against: 0 is the same model."
)


def score_groups(found: Findings) -> list[list[Score]]:
    """The eval results, those on the same text in the same way together; the largest group first."""
    groups: dict[tuple[Any, ...], list[Score]] = {}
    for score in found.of("eval"):
        if "perplexity" not in score:  # tasks alone
            continue
        key = tuple(score.get(name) for name in ("method", "context", "stride", "counted", "tokens"))
        groups.setdefault(key, []).append(score)
    return sorted(groups.values(), key=len, reverse=True)


def is_source(found: Findings, model: str) -> bool:
    """Whether ``model`` is the dense one that everything was made from."""
    return found.source is not None and found.name(model) == found.source


def dense_perplexity(found: Findings, group: Sequence[Score]) -> float | None:
    """The dense model's perplexity on a group's text, if it was measured."""
    for score in group:
        if is_source(found, score["model"]):
            return float(score["perplexity"])
        if score.get("against") and is_source(found, score["against"]) and score.get("against_perplexity"):
            return float(score["against_perplexity"])
        for each in score.get("baselines", ()):
            if is_source(found, each["model"]) and len(score["corpora"]) == 1:
                return next(
                    float(own["value"]) for own in score["measures"][0]["baselines"] if own["name"] == each["name"]
                )
    return None


def beside_source(found: Findings) -> Score | None:
    """The last of the eval results' baselines that is the dense model, on more than one text or on tasks."""
    last = None
    for score in found.of("eval"):
        for each in score.get("baselines", ()):
            if is_source(found, each["model"]) and len(score["measures"]) > 1:
                last = each
    return last


def _measures(found: Findings) -> Iterator[Table]:
    """Texts and tasks one by one, each beside its baselines."""
    for score in found.of("eval"):
        measures, baselines = score.get("measures", ()), score.get("baselines", ())
        if baselines or len(measures) > 1 or "tasks" in score:
            head, lines = rows(measures, baselines, _label(found, score).partition(":")[0])
            yield Table(
                head=head, rows=lines,
                note="Perplexity of texts, share of right answers in tasks, with standard errors; those beside a"
                " baseline are of the same tokens and questions.",
            )  # fmt: skip


def perplexity(found: Findings) -> Iterator[Element]:
    """The perplexities of all models and modes, and divergences; without an eval, what relufy itself measured."""
    groups = score_groups(found)
    if groups:
        yield _ABOUT
    elif found.sparse is not None and found.sparse.figures.get("perplexity"):
        report = found.sparse.figures
        dense, now = float(report["dense_perplexity"]), float(report["perplexity"])
        bars = [("dense", dense, _times(dense, dense)), (found.name(found.sparse.path), now, _times(now, dense))]
        yield Figure(
            title="Perplexity on the sequences that relufy kept from training",
            note="Lower is better.",
            svg=horizontal_bars("perplexity before and after", bars, reference=dense),
            wide=True,
        )
    for group in groups:
        reference = dense_perplexity(found, group)
        values = [float(score["perplexity"]) for score in group]
        log = max(values) > 4 * min(values)
        bars = [
            (_label(found, score), value, _times(value, reference)) for score, value in zip(group, values, strict=True)
        ]
        note = "Lower is better."
        note += " The dashed line is the dense model." if reference else ""
        note += " The scale is logarithmic." if log else ""
        svg = horizontal_bars("perplexity of each model and mode", bars, reference=reference, log=log)
        yield Figure(title=f"Perplexity on {_text(group[0])}", note=note, svg=svg, wide=True)
        if any(score.get("kl_mean") is not None for score in group):
            yield _divergences(found, group)
    yield from _measures(found)


def _label(found: Findings, score: Score) -> str:
    """The model of a score, with how it was converted or the runner's mode."""
    name = found.name(score["model"])
    if score.get("mode") not in (None, "checkpoint"):
        return f"{name}, {score['mode']}"
    if is_source(found, score["model"]):
        return name if name == "dense" else f"{name}: dense"
    settings = {found.name(record.path): record.figures.get("settings") for record in found.checkpoints}.get(name)
    if not settings:
        return name
    how = settings.get("recover", "")
    state = "aligned" if how == "none" and settings.get("align") else how
    return f"{name}: {_STATES.get(state, state)}"


def _text(score: Score) -> str:
    counted = score.get("counted") or score.get("tokens") or 0
    how = f", {score['method']} method, windows of {score['context']}" if score.get("method") else ""
    return f"{counted:,} tokens of held-out text{how}"


def _times(value: float, dense: float | None) -> str:
    return measured(value) + (f" · {measured(value / dense)} ×" if dense else "")


def _divergences(found: Findings, group: Sequence[Score]) -> Table:
    lines = []
    for score in group:
        if score.get("kl_mean") is None:
            continue
        figures = [score.get(key) for key in ("kl_mean", "kl_median", "kl_99", "kl_max")]
        cells = ["–" if value is None else f"{max(0.0, value):.4f}" for value in figures]
        same = score.get("top1_agreement")
        cells.append("–" if same is None else percent(same))
        lines.append([_label(found, score).partition(":")[0], found.name(score["against"]), *cells])
    return Table(
        head=("model", "held against", "KL mean", "median", "99 %", "largest", "same first choice"), rows=lines,
        note="KL divergence in nats a token, between the two models' next-token distributions.",
    )  # fmt: skip
