"""What `eval --tasks` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Which tasks are put to a model."""

    model: str
    """A checkpoint folder, an embedded model, a hub id, or a .gguf file."""
    tasks: tuple[str, ...]
    """Names that lm-eval knows, or that are shipped; .jsonl files of questions with choices, or folders of them."""
    folder: Path | None = None
    """lm-eval's task files of one's own."""
    limit: int | None = None
    """Questions of each task; None for all. Of a file they are spread evenly over it, of lm-eval's the first ones."""
    mode: str = "auto"
    """For GGUF files: `auto`, `dense`, `exact` or `predicted`."""
    threads: int | None = None
