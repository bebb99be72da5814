"""What `eval` is asked to do."""

from dataclasses import dataclass, fields
from pathlib import Path

from ...text.sources import Source
from ..scoring.windowing import Windowing


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Windowing):
    """What `evaluate` is asked to do; also how it cuts text."""

    model: str
    """A checkpoint folder, an embedded model, a hub id, or a .gguf file."""
    data: tuple[Source, ...] = ()
    """Corpora; empty takes the embedded held-out text."""
    mode: str = "auto"
    """For GGUF files: `auto`, `dense`, `exact` or `predicted`."""
    against: str | None = None
    """The model to compare with on the same tokens, or what ``save_logits`` wrote of one."""
    save_logits: Path | None = None
    """Where the model's predictions are kept, for later comparisons with it."""
    top: int = 2048
    """Tokens that are kept of each prediction."""
    threads: int | None = None

    @property
    def windowing(self) -> Windowing:
        """How it cuts text, alone."""
        return Windowing(**{each.name: getattr(self, each.name) for each in fields(Windowing)})
