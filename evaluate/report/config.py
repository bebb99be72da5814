"""What `report` is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to report on."""

    folder: Path
    """Checkpoints, predictors, profiles, GGUF files and saved `--json` outputs, in it or up to two folders down."""
    out: Path = Path("report.html")
    """The page; an older one is replaced."""
