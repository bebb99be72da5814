"""What `imatrix` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from ...text.sources import Source


@dataclass(frozen=True, kw_only=True)
class ImatrixConfig:
    """What `imatrix` is asked to do."""

    model: str
    """A checkpoint, dense or sparse."""
    out: Path
    """The file, NAME.gguf."""
    data: tuple[Source, ...] = ()
    """Empty takes the embedded text."""
    tokens: int = 64_000
    context: int = 512
    """Tokens a sequence."""
    device: str = "cpu"
    seed: int = 0
