"""What `eval` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from ...text.sources import Source
from ..scoring.windowing import Windowing


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What `evaluate` is asked to do."""

    model: str
    """A checkpoint folder, an embedded model, a hub id, or a .gguf file."""
    data: tuple[Source, ...] = ()
    """Corpora; empty takes the embedded held-out text."""
    tokens: int = 16_000
    context: int = 512
    method: str = "llama.cpp"
    """How windows are cut and which tokens count: `llama.cpp` or `papers`, see windows.py."""
    stride: int | None = None
    parse_special: bool | None = None
    """Special tokens that the text spells are those tokens; None: with the method `papers`."""
    chunks: int | None = None
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
        """How text is to be cut."""
        return Windowing(
            method=self.method,
            context=self.context,
            stride=self.stride,
            tokens=self.tokens,
            chunks=self.chunks,
            parse_special=self.parse_special,
        )
