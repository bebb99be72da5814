"""Tasks of lm-eval, an extra: pip install 'tsconvert[tasks]'. It fetches its own tasks' data from the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import TsconvertError, reason
from ..records.measures import Scored
from ..scoring.scorer import Scorer
from .result import TaskResult

_PREFERRED = ("acc_bytes", "acc_norm", "acc", "exact_match")


class LmEvalTasks:
    """Tasks by their names, to be put to one model after the other.

    Args:
        folder: task files of one's own.
        limit: of each task the first so many questions.

    Raises:
        TsconvertError: lm-eval is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, limit: int | None) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError:
            raise TsconvertError(
                f"--tasks {','.join(names)}: needs lm-eval: pip install 'tsconvert[tasks]'; a .jsonl file of questions"
                " needs nothing"
            ) from None
        path = str(folder) if folder else None
        manager = TaskManager(include_path=path, include_defaults=False)
        if any(name not in manager.all_tasks for name in names):
            manager = TaskManager(include_path=path)  # reads the files of all of its own tasks, for half a minute
        self._names, self._limit, self._manager = list(names), limit, manager

    def put(self, model: Scorer) -> list[TaskResult]:
        """Put the tasks to ``model``.

        Raises:
            TsconvertError: a task or its data is not there.
        """
        from lm_eval import simple_evaluate

        from .lm_eval_model import ScorerLM

        try:
            found = simple_evaluate(
                ScorerLM(model), tasks=self._names, limit=self._limit, task_manager=self._manager, log_samples=True,
                bootstrap_iters=0 if self._limit == 1 else 1000,
            )  # fmt: skip
        except TsconvertError:
            raise
        except Exception as error:  # lm-eval's and datasets' own kinds are many
            raise TsconvertError(
                f"--tasks {','.join(self._names)}: lm-eval says: {reason(error)}; --debug shows where"
            ) from error
        return [_result(name, row, found) for name, row in found["results"].items()]


def _result(name: str, row: dict[str, Any], found: dict[str, Any]) -> TaskResult:
    count = found["n-samples"].get(name)
    scored = _scored(name, row, found["samples"].get(name, ()), found["higher_is_better"].get(name, {}))
    return TaskResult(name=name, metrics=figures(row), questions=count and int(count["effective"]), scored=scored)


def _scored(
    name: str, row: dict[str, Any], samples: Sequence[dict[str, Any]], better: dict[str, bool]
) -> Scored | None:
    """The questions' points in the task's first metric that is their mean and of which more is better."""
    keys = [key.partition(",")[::2] for key in row if "," in key and "_stderr" not in key]
    order = {metric: place for place, metric in enumerate(_PREFERRED)}
    for metric, variant in sorted(keys, key=lambda key: order.get(key[0], len(order))):
        own = sorted((each for each in samples if each.get("filter") == variant), key=lambda each: each["doc_id"])
        values = [each.get(metric) for each in own]
        if not better.get(metric) or not values or not all(isinstance(value, int | float) for value in values):
            continue
        values_P = np.asarray(values, np.float64)
        if np.isclose(values_P.mean(), row[f"{metric},{variant}"]):
            return Scored(source=name, metric=metric, values_P=values_P)
    return None


def figures(row: dict[str, Any]) -> dict[str, float]:
    """lm-eval's metrics of a task: `acc,none` is `acc`; what is no number is left out."""
    found: dict[str, float] = {}
    for key, value in row.items():
        name, _, variant = key.partition(",")
        if isinstance(value, int | float) and variant:
            found[name if variant == "none" else f"{name}_{variant}"] = float(value)
    return found
