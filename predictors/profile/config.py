"""What `tsconvert profile` is asked to do."""

from dataclasses import dataclass
from pathlib import Path

from ...text.sources import Source


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What `profile` is asked to do."""

    model: str
    """A sparse checkpoint: dReLU or ReGLU."""
    out: Path | None = None
    """The profile file; None writes none."""
    data: tuple[Source, ...] = ()
    """One corpus each; empty takes the embedded text. Weights divide the tokens."""
    tokens: int = 64_000
    """Tokens of all corpora together."""
    context: int = 512
    """Tokens a sequence."""
    powerinfer_dir: Path | None = None
    """Also write PowerInfer's activation_{i}.pt files there."""
    device: str = "cpu"
    seed: int = 0
