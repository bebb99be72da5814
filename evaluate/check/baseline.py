"""The baseline of a check: the figures of a run that was good, and how far a figure may be from its own."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import TsconvertError
from ...common.files import write_json
from ..recipe.recipe import Limit
from ..records.json_path import is_number

_FORMAT, _VERSION = "tsconvert check baseline", 1


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """Figures by name."""

    path: Path | None
    figures: dict[str, float] = field(default_factory=dict)
    updating: bool = False
    """This run's figures become the baseline, so none has drifted."""

    def allowed(self, limit: Limit) -> str:
        """What a limit's drift allows, for people."""
        base = self.figures.get(limit.figure)
        side = {1: "above", -1: "below", 0: "off"}[limit.side]
        return f"{limit.drift:.3g} of it {side} the baseline's" + ("" if base is None else f" {base:.5g}")

    def problem(self, limit: Limit, found: float) -> str:
        """Why ``found`` is too far from the baseline; empty if it is not.

        With a max and no min only a rise counts, with a min and no max only a fall, otherwise both.
        """
        if self.updating:
            return ""
        base = self.figures.get(limit.figure)
        if base is None:
            return f"is not in the baseline {self.path or ''}".rstrip() + "; write it with --update-baseline"
        assert limit.drift is not None
        off = found - base
        if off * limit.side < 0 or abs(off) <= limit.drift * abs(base):
            return ""
        share = f"{off / base:+.2%}" if base else "away"
        return f"is {found:.5g}, {share} from the baseline's {base:.5g}, where {limit.drift:.3g} of it is allowed"


def read_baseline(path: Path | None, *, updating: bool, needed: bool) -> Baseline:
    """Read a baseline.

    Args:
        updating: it is going to be written anew.
        needed: some limit has a drift.

    Raises:
        TsconvertError: a drift is asked for and no file is named, or the file is no baseline.
    """
    if path is None:
        if needed or updating:
            raise TsconvertError("a drift needs a baseline: name its file in the spec (baseline) or with --baseline")
        return Baseline(path=None)
    if updating or not path.is_file():
        return Baseline(path=path, updating=updating)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        figures = found["figures"]
        right = found["format"] == _FORMAT and all(is_number(value) for value in figures.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        right = False
    if not right:
        raise TsconvertError(f"{path}: is no baseline of a check; write it with --update-baseline")
    if found.get("format_version") != _VERSION:
        raise TsconvertError(
            f"{path}: format version {found.get('format_version')}, this tsconvert reads {_VERSION}; write it with"
            " --update-baseline"
        )
    return Baseline(path=path, figures=figures)


def write_baseline(path: Path, figures: dict[str, float]) -> None:
    """Write the figures of this run, sorted by name, so that a diff of two baselines reads well."""
    ordered = {name: figures[name] for name in sorted(figures)}
    write_json(path, {"format": _FORMAT, "format_version": _VERSION, "figures": ordered})
