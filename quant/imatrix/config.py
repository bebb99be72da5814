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
    slope_tokens: int = 0
    """Tokens on which to measure also what errors of each matrix cost, for sizes of files; a few thousand do."""
    resume: bool = False
    """Go on with the slopes of a run that died."""
    device: str = "cpu"
    seed: int = 0

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the text, as the file has them."""
        return tuple(source.path for source in self.data) or ("embedded text",)
