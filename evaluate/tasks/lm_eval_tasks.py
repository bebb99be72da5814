"""Accuracy tasks through lm-eval, an extra: pip install 'tsconvert[tasks]'.

lm-eval fetches its own tasks' data from the hub. `agreement`, shipped in evaluate/tasks, needs no network.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError, reason
from ..scoring.scorer import open_scorer
from .config import TaskConfig

_SHIPPED = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What `run_tasks` found. Field names are the JSON keys."""

    model: str
    mode: str
    tasks: dict[str, dict[str, float]]
    """Task -> lm-eval's metrics, such as `acc` and `acc_stderr`."""
    questions: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.mode})"]
        for task, found in self.tasks.items():
            figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            lines.append(f"  {task}, {self.questions.get(task, 0)} questions: {figures}")
        return "\n".join(lines)


def run_tasks(config: TaskConfig) -> TaskReport:
    """Put lm-eval's ``config.tasks`` to ``config.model``.

    Raises:
        TsconvertError: lm-eval is not installed, a task or its data is not there, or the model cannot be read.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise TsconvertError("--tasks needs lm-eval: pip install 'tsconvert[tasks]'") from None
    from .lm_eval_model import ScorerLM

    tasks = [_shipped(name) or name for name in config.tasks]
    folder = str(config.folder) if config.folder else None
    manager = TaskManager(include_path=folder, include_defaults=False)
    if any(isinstance(task, str) and task not in manager.all_tasks for task in tasks):
        manager = TaskManager(include_path=folder)  # reads the files of all of lm-eval's own tasks, for half a minute
    scorer = open_scorer(config.model, config.mode, config.threads)
    try:
        found = simple_evaluate(
            ScorerLM(scorer), tasks=tasks, limit=config.limit, task_manager=manager, log_samples=False,
            bootstrap_iters=0 if config.limit == 1 else 1000,
        )  # fmt: skip
    except TsconvertError:
        raise
    except Exception as error:  # lm-eval's and datasets' own kinds are many
        raise TsconvertError(
            f"--tasks {','.join(config.tasks)}: lm-eval says: {reason(error)}; --debug shows where"
        ) from error
    return TaskReport(
        model=config.model, mode=scorer.mode, tasks={name: _figures(row) for name, row in found["results"].items()},
        questions={name: int(count["effective"]) for name, count in found["n-samples"].items()},
    )  # fmt: skip


def shipped_tasks() -> list[str]:
    """Names of the tasks that come with tsconvert."""
    return sorted(file.stem for file in _SHIPPED.glob("*.yaml"))


def _shipped(name: str) -> dict[str, Any] | None:
    """A shipped task's settings, its data's path made absolute."""
    import yaml

    if name not in shipped_tasks():
        return None
    settings: dict[str, Any] = yaml.safe_load((_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"))
    files = settings["dataset_kwargs"]["data_files"]
    settings["dataset_kwargs"]["data_files"] = {split: str(_SHIPPED / file) for split, file in files.items()}
    return settings


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """`acc,none` is `acc`; what is no number is left out."""
    figures: dict[str, float] = {}
    for key, value in row.items():
        name, _, variant = key.partition(",")
        if isinstance(value, int | float) and variant:
            figures[name if variant == "none" else f"{name}_{variant}"] = float(value)
    return figures


def names(argument: Sequence[str]) -> tuple[str, ...]:
    """`("a,b", "c")` as three names."""
    return tuple(name for part in argument for name in part.split(",") if name)
