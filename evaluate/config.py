"""What `eval` is asked to do."""

from dataclasses import dataclass

from .perplexity.config import EvalConfig
from .tasks.config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What is measured; at least one of ``text`` and ``tasks``, of the same model."""

    text: EvalConfig | None = None
    tasks: TaskConfig | None = None
    baselines: tuple[str, ...] = ()
    """Models to hold the measured one against, each MODEL or NAME=MODEL."""
