"""What a model scored on texts and tasks, item by item, and beside other models on the same items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..scoring.divergence import Doubles, mean_error

PERPLEXITY = "perplexity"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One model on one text or task.

    Raises:
        AssertionError: there are no items.
    """

    source: str
    """The text or task, as it was asked for."""
    metric: str
    """`perplexity`, or a task's: `acc_bytes`, `acc_norm`, `exact_match`, ..., of which more is better."""
    values_P: Doubles
    """Of each token -ln p, in nats; of each question its points, 0 to 1."""

    def __post_init__(self) -> None:
        assert len(self.values_P), self.source

    @property
    def value(self) -> float:
        """The perplexity, or the mean of the points."""
        mean = float(self.values_P.mean())
        return math.exp(mean) if self.metric == PERPLEXITY else mean

    @property
    def error(self) -> float:
        """Standard error of ``value`` over the items."""
        return mean_error(self.values_P) * (self.value if self.metric == PERPLEXITY else 1.0)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A baseline's figure, and the model's beside it. Errors are those of paired items: what both find hard cancels."""

    name: str
    value: float
    error: float
    ratio: float | None
    """The model's value over the baseline's; None over 0."""
    ratio_error: float | None
    difference: float | None
    """The model's points minus the baseline's, of tasks."""
    difference_error: float | None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One text or task."""

    name: str
    """Short, and no other measure's."""
    source: str
    metric: str
    count: int
    """Tokens or questions that count."""
    value: float
    error: float
    baselines: list[Beside] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A model that the measured one is held against, with the worst and the mean of what was found."""

    name: str
    model: str
    mode: str
    worst_ratio: float | None = None
    """The largest ratio of perplexities; None without texts."""
    worst_ratio_on: str | None = None
    mean_ratio: float | None = None
    """Geometric, over texts."""
    worst_difference: float | None = None
    """The lowest difference of points; None without tasks."""
    worst_difference_on: str | None = None
    mean_difference: float | None = None
    mean_difference_error: float | None = None
    """Of these tasks' mean, over questions."""


def beside(name: str, ours: Scored, theirs: Scored) -> Beside:
    """``ours`` over and minus ``theirs``, of the same items in the same order.

    The ratio of perplexities is exp of the mean difference; the error of a ratio of means x / y is that of the mean of
    (x - ratio y) / y (the delta method for a ratio of paired means).
    """
    assert len(ours.values_P) == len(theirs.values_P), (ours.source, name)
    difference_P = ours.values_P - theirs.values_P
    text, ratio, ratio_error = ours.metric == PERPLEXITY, None, None
    if text:
        ratio = math.exp(float(difference_P.mean()))
        ratio_error = ratio * mean_error(difference_P)
    elif theirs.value:
        ratio = ours.value / theirs.value
        ratio_error = mean_error(ours.values_P - ratio * theirs.values_P) / theirs.value
    return Beside(
        name=name, value=theirs.value, error=theirs.error, ratio=ratio, ratio_error=ratio_error,
        difference=None if text else float(difference_P.mean()),
        difference_error=None if text else mean_error(difference_P),
    )  # fmt: skip


def measures(ours: Sequence[Scored], baselines: Mapping[str, Sequence[Scored]]) -> list[Measure]:
    """A measure for each of ``ours``, beside each baseline's scores in the same order."""
    names = short_names([score.source for score in ours])
    return [
        Measure(
            name=names[at], source=score.source, metric=score.metric, count=len(score.values_P), value=score.value,
            error=score.error, baselines=[beside(name, score, theirs[at]) for name, theirs in baselines.items()],
        )
        for at, score in enumerate(ours)
    ]  # fmt: skip


def summary(name: str, model: str, mode: str, found: Sequence[Measure]) -> Baseline:
    """The worst and the mean of what was found beside the baseline ``name``."""
    pairs = [(measure.name, each) for measure in found for each in measure.baselines if each.name == name]
    texts = [(each.ratio, on) for on, each in pairs if each.difference is None and each.ratio is not None]
    tasks = [(each.difference, on) for on, each in pairs if each.difference is not None]
    errors = [each.difference_error for _, each in pairs if each.difference_error is not None]
    worst, lowest = max(texts, default=(None, None)), min(tasks, default=(None, None))
    return Baseline(
        name=name, model=model, mode=mode, worst_ratio=worst[0], worst_ratio_on=worst[1],
        mean_ratio=math.exp(float(np.mean([math.log(ratio) for ratio, _ in texts]))) if texts else None,
        worst_difference=lowest[0], worst_difference_on=lowest[1],
        mean_difference=float(np.mean([difference for difference, _ in tasks])) if tasks else None,
        mean_difference_error=math.hypot(*errors) / len(errors) if tasks else None,
    )  # fmt: skip


def short_names(sources: Sequence[str]) -> list[str]:
    """Each source's file name without its ending, with so many of its folders as tell it from the others."""
    parts = [Path(source).with_suffix("").parts if Path(source).suffix else Path(source).parts for source in sources]
    names = ["/".join(part[-1:]) for part in parts]
    depth = 1
    while len(set(names)) < len(names) and depth < max(map(len, parts)):
        depth += 1
        names = [
            "/".join(part[-depth:]) if names.count(name) > 1 else name for name, part in zip(names, parts, strict=True)
        ]
    return [name if names.count(name) == 1 else source for name, source in zip(names, sources, strict=True)]


Row = Sequence[str]
Plain = Mapping[str, Any]
"""A `Measure`, `Beside` or `Baseline` as --json has it."""


def rows(found: Sequence[Plain], baselines: Sequence[Plain], name: str) -> tuple[Row, list[Row]]:
    """The head and the rows of the table of measures and baselines; ``name`` is the model's."""
    head = ["", "measure", "items", name, *(word for each in baselines for word in (each["name"], "beside it"))]
    table: list[Row] = []
    texts = [measure for measure in found if measure["metric"] == PERPLEXITY]
    tasks = [measure for measure in found if measure["metric"] != PERPLEXITY]
    for kind, group, value, figure in (
        (PERPLEXITY, texts, _perplexity, "ratio"),
        ("tasks", tasks, _share, "difference"),
    ):
        for measure in group:
            row = [measure["name"], measure["metric"], f"{measure['count']:,}", value(measure)]
            for each in measure["baselines"]:
                row += [value(each), _beside(figure, each[figure], each[f"{figure}_error"])]
            table.append(row)
        for what in ("worst", "mean") if baselines and len(group) > 1 else ():
            row = [what, kind, "", ""]
            for each in baselines:
                key = f"{what}_{figure}"
                row += [each.get(f"{key}_on") or "", _beside(figure, each[key], each.get(f"{key}_error"))]
            table.append(row)
    return head, table


def _perplexity(figure: Plain) -> str:
    return f"{figure['value']:,.2f} ± {figure['error']:,.2f}"


def _share(figure: Plain) -> str:
    return f"{100 * figure['value']:.1f} ± {100 * figure['error']:.1f} %"


def _beside(figure: str, value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    if figure == "ratio":
        return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}") + " times"
    return f"{100 * value:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}") + " points"
