"""Tasks: files of multiple choice by our own scorer, and lm-eval's."""

from collections.abc import Sequence
from pathlib import Path

from ..scoring.scorer import Scorer
from .choices import choice_files, is_choice_file, read_questions, score_files
from .config import TaskConfig
from .lm_eval_tasks import LmEvalTasks
from .result import TaskResult

_SHIPPED = Path(__file__).parent


class Tasks:
    """Tasks that were read and checked, to be put to one model after the other.

    Raises:
        TsconvertError: a file is missing or damaged, or lm-eval is needed and not installed.
    """

    def __init__(self, config: TaskConfig) -> None:
        known = [str(_SHIPPED / f"{name}.jsonl") if name in shipped_tasks() else name for name in config.tasks]
        files = [file for name in known if is_choice_file(name) for file in choice_files(name)]
        sources = list(dict.fromkeys(map(str, files)))
        self._questions = {source: read_questions(Path(source), config.limit) for source in sources}
        others = [name for name in known if not is_choice_file(name)]
        self._others = LmEvalTasks(others, config.folder, config.limit) if others else None

    def put(self, model: Scorer) -> list[TaskResult]:
        """What ``model`` makes of them."""
        results = score_files(model, self._questions) if self._questions else []
        return results + (self._others.put(model) if self._others else [])


def shipped_tasks() -> list[str]:
    """Names of the tasks that come with tsconvert."""
    return sorted(file.stem for file in _SHIPPED.glob("*.jsonl"))


def names(argument: Sequence[str]) -> tuple[str, ...]:
    """`("a,b", "c")` as three names."""
    return tuple(name for part in argument for name in ([part] if Path(part).exists() else part.split(",")) if name)
