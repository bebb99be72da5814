"""What `check` is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from ..recipe.recipe import Options


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """What to check."""

    spec: Path
    out: Path | None = None
    """Folder of the outputs, in place of the spec's."""
    variables: dict[str, str] = field(default_factory=dict)
    """In place of the spec's."""
    resume: bool = False
    """Take over the stages that an earlier check finished."""
    junit: Path | None = None
    """Where to write the lines as JUnit's XML."""
    baseline: Path | None = None
    """In place of the spec's."""
    update_baseline: bool = False
    """Write this run's figures as the baseline, if all else passed."""
    options: Options | None = None
    """Every command's options, so that a misspelt one is found at once."""
