"""What a run of `relufy` leaves behind to be resumed and read: its journal's head, and tsconvert.json."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..common.command_line import typed
from ..common.errors import TsconvertError
from ..common.files import write_json
from ..common.results import plain
from ..model.checkpoint import Checkpoint
from ..model.files.journal import JOURNAL, Journal
from ..model.files.provenance import PROVENANCE
from .config import RelufyConfig
from .report import LayerResult, RelufyReport

FORMAT_VERSION = 1
_EARLIER_SETTINGS = {
    "full.penalty": "steered", "full.penalty_peak": 1.0, "training.silenced_by": "l1", "training.up_passes": None,
    "full.attention_share": None,
}  # fmt: skip
_LATER_SETTINGS = ("full.likeliest", "time_limit_s")


def begin_journal(folder: Path, config: RelufyConfig, source: Checkpoint) -> Journal:
    """The journal in ``folder`` of a run with these settings.

    Raises:
        TsconvertError: a run with other settings was begun there.
    """
    asked = {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out", "predictors")}
    # of a run that does not train the whole model, how it would is not compared
    later = _LATER_SETTINGS if config.recover == "full" else (*_LATER_SETTINGS, "full")
    return Journal(folder / JOURNAL, {"asked": asked, "source": source.fingerprint}, _EARLIER_SETTINGS, later)


def write_provenance(folder: Path, config: RelufyConfig, report: RelufyReport) -> None:
    """Write the settings and the report beside the weights."""
    settings = asdict(config, dict_factory=plain)
    for name in config.full.unused:
        del settings["full"][name]
    content: dict[str, Any] = {
        "format": "tsconvert relufy",
        "format_version": FORMAT_VERSION,
        "command": typed(),
        "settings": settings,
        "report": report.to_json(),
    }
    write_json(folder / PROVENANCE, content)


def read_report(folder: Path) -> RelufyReport:
    """The report of local recovery in the checkpoint ``folder``.

    Raises:
        TsconvertError: its file is missing or damaged.
    """
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["report"]
        energies, layers = found["energy_kept"], tuple(LayerResult(**fields) for fields in found["layers"])
        report = RelufyReport(**found | {"out": folder, "layers": layers, "shift": None, "full": None})
    except (OSError, ValueError, KeyError, TypeError):
        raise TsconvertError(f"{folder / PROVENANCE}: missing or damaged; remove {folder} and start again") from None
    return replace(report, energy_kept=(energies[0], energies[1]) if energies else None)
