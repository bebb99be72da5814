"""`tsconvert eval`: a model on several texts and tasks at once, and others on the same items beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..common.progress import note
from ..common.tables import table
from .config import MeasureConfig
from .perplexity import evaluate as perplexity
from .records.eval_report import EvalReport
from .records.measures import Baseline, Measure, Scored, measures, rows, summary
from .scoring.scorer import open_scorer
from .tasks.result import TaskResult
from .tasks.tasks import Tasks


@dataclass(frozen=True, kw_only=True)
class MeasureReport:
    """What was found."""

    model: str
    mode: str
    text: EvalReport | None
    tasks: list[TaskResult]
    measures: list[Measure]
    baselines: list[Baseline] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The keys that docs/eval.md lists: the text's, the tasks', `measures` and `baselines`."""
        found: dict[str, Any] = {"model": self.model, "mode": self.mode}
        if self.text is not None:
            found |= self.text.to_json()
        if self.tasks:
            found["tasks"] = {task.name: task.metrics for task in self.tasks}
            found["questions"] = {task.name: task.questions for task in self.tasks if task.questions is not None}
        found["measures"] = [asdict(each) for each in self.measures]
        return found | {"baselines": [asdict(each) for each in self.baselines]}

    def __str__(self) -> str:
        parts = [str(self.text)] if self.text is not None else []
        if self.tasks or self.baselines or len(self.measures) > 1:
            found = self.to_json()
            head, lines = rows(found["measures"], found["baselines"], Path(self.model).name)
            parts.append(table(head, lines, title=f"{self.model} ({self.mode})"))
        shown = {(measure.source, measure.metric) for measure in self.measures}
        others: dict[str, list[str]] = {}
        for task in self.tasks:
            for metric, value in task.metrics.items():
                inside = task.scored is not None and (task.scored.source, metric) in shown
                if "_stderr" not in metric and not inside:
                    others.setdefault(metric, []).append(f"{task.name} {value:.4f}")
        parts += [f"{metric}: {', '.join(values)}" for metric, values in others.items()]
        return "\n".join(parts)


def measure(config: MeasureConfig) -> MeasureReport:
    """Score the model and then each baseline, one after the other in memory, on the same items.

    What can be refused is refused before the first is scored.

    Raises:
        TsconvertError: a model, a text or a task cannot be read, or a baseline has another tokenizer.

    Example:
        >>> text = EvalConfig(model="sparse", data=(Source(path="wiki.txt"), Source(path="code.txt")))
        >>> measure(MeasureConfig(text=text, baselines=("dense=MODEL",))).baselines[0].worst_ratio  # doctest: +SKIP
        1.6
    """
    asked = config.text or config.tasks
    assert asked is not None
    stored = perplexity.stored_reference(config.text) if config.text else None
    room = perplexity.room(config.text, stored) if config.text else None
    tasks = Tasks(config.tasks) if config.tasks else None
    model = open_scorer(asked.model, asked.mode, asked.threads, room)
    text = perplexity.read_text(config.text, model, stored) if config.text else None
    others = _named(config.baselines)
    for name, path in others.items():
        other = open_scorer(path, "auto", asked.threads, room)
        if text is not None:
            perplexity.require_same_text(text, model, other, f"--baseline {name}")
        del other
    mode, report, scored = model.mode, None, list[Scored]()
    if config.text is not None and text is not None:
        report, scored = perplexity.score(config.text, model, text)
    results = tasks.put(model) if tasks else []
    scored += _points(results)
    del model
    beside: dict[str, list[Scored]] = {}
    modes = []
    for name, path in others.items():
        note(f"-- the baseline {name}: {path}")
        other = open_scorer(path, "auto", asked.threads, room)
        beside[name] = perplexity.losses(other, text) if text is not None else []
        beside[name] += _points(tasks.put(other) if tasks else [])
        modes.append(other.mode)
        del other
    found = measures(scored, beside)
    baselines = [summary(name, path, how, found) for (name, path), how in zip(others.items(), modes, strict=True)]
    return MeasureReport(model=asked.model, mode=mode, text=report, tasks=results, measures=found, baselines=baselines)


def _points(results: Sequence[TaskResult]) -> list[Scored]:
    return [result.scored for result in results if result.scored is not None]


def _named(baselines: Sequence[str]) -> dict[str, str]:
    """Name -> model."""
    found: dict[str, str] = {}
    for argument in baselines:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = Path(argument).stem if argument.endswith(".gguf") else Path(argument).name, argument
        if not name or not path:
            raise TsconvertError(f"--baseline {argument}: give MODEL or NAME=MODEL")
        if name in found:
            raise TsconvertError(f"--baseline {argument}: {name} is named twice; give NAME=MODEL with another name")
        found[name] = path
    return found
