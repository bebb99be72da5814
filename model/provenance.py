"""What relufy keeps of itself beside the weights that it wrote, as others read it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError

PROVENANCE = "tsconvert.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a checkpoint was made."""

    settings: dict[str, Any]
    report: dict[str, Any]
    command: str | None = None


def read_provenance(folder: Path) -> Provenance | None:
    """What relufy says of the checkpoint in ``folder``; None if it is not relufy's.

    Raises:
        TsconvertError: its file is damaged.
    """
    path = folder / PROVENANCE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Provenance(settings=dict(found["settings"]), report=dict(found["report"]), command=found.get("command"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise not_relufys(path) from None


def not_relufys(path: Path) -> TsconvertError:
    """The refusal of a file that says something else."""
    return TsconvertError(f"{path}: not what relufy writes; remove it")
