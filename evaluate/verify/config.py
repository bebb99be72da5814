"""What `verify` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What to compare with what."""

    model: str | Path
    """The checkpoint: a folder, a GGUF file, an embedded model's name, or a hub id."""
    file: Path
    predictors: Path | None = None
    """The predictor folder; None takes those inside the checkpoint, if there are any."""
    overridden: frozenset[str] = frozenset()
    """Keys that the user set on export, which need not be the model's."""
    importances: bool = False
    """The file was encoded with an importance matrix, even if it does not say so."""
    logits: bool = True
    """Also compare logits."""
