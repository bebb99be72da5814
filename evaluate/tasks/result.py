"""What tasks found."""

from dataclasses import dataclass

from ..records.measures import Scored


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One model on one task."""

    name: str
    metrics: dict[str, float]
    """Such as `acc` and `acc_stderr`, its standard error."""
    questions: int | None
    """None of a group of lm-eval's tasks."""
    scored: Scored | None
    """Points of each question in the metric that counts; None where the task has none such."""
