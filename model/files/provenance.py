"""The record of its settings and results that relufy saves beside the weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError

PROVENANCE = "tsconvert.json"


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a checkpoint was made."""

    settings: dict[str, Any]
    report: dict[str, Any]
    command: str | None = None


def read_provenance(folder: Path) -> Provenance | None:
    """The record in the checkpoint ``folder``; None if relufy did not make the checkpoint.

    Raises:
        TsconvertError: the file is damaged.
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
    """The error about a damaged record."""
    return TsconvertError(f"{path}: not what relufy writes; remove it")
