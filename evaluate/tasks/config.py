"""What `eval --tasks` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What `run_tasks` is asked to do."""

    model: str
    """A checkpoint folder, an embedded model, a hub id, or a .gguf file."""
    tasks: tuple[str, ...]
    """Names that lm-eval knows, or that are shipped."""
    folder: Path | None = None
    """Task files of one's own."""
    limit: int | None = None
    """Questions of each task; None for all."""
    mode: str = "auto"
    """For GGUF files: `auto`, `dense`, `exact` or `predicted`."""
    threads: int | None = None
