"""Judging what a check found: one line for each stage, each output and each limit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...common.errors import TsconvertError
from ..recipe.recipe import Limit
from ..records.json_path import figure, is_number
from .baseline import Baseline

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One thing that had to be so."""

    what: str
    """The figure, or `stage NAME`, or `output NAME`."""
    status: str
    """`passed`, `failed`, or `skipped` because the stage before it failed."""
    found: Any = None
    allowed: str = ""
    problem: str = ""
    """One sentence if it is not so."""
    key: tuple[str, ...] = ()
    """Where it stands in the spec."""

    def row(self, width: int) -> str:
        """A row of the table, the figure's name padded to ``width``."""
        mark = {PASSED: "ok  ", FAILED: "FAIL", SKIPPED: "-   "}[self.status]
        return f"{mark} {self.what:<{width}}  {shown(self.found):>16}  {self.allowed}".rstrip()

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self) | {"key": list(self.key)}


def judge(limit: Limit, results: Mapping[str, dict[str, Any] | None], baseline: Baseline) -> Line:
    """What became of one limit.

    Args:
        results: by name of stage or output; None where there is none because a stage failed.
    """
    allowed = _allowed(limit, baseline)
    needed = [limit.where, *(name.partition(".")[0] for name in (limit.over, limit.same_as) if name)]
    missing = [name for name in needed if results.get(name) is None]
    if missing:
        problem = f"not known, for {missing[0]} has no result"
        return Line(what=limit.figure, status=SKIPPED, allowed=allowed, problem=problem, key=limit.key)
    try:
        found = measured(limit, results)
        problem = _problem(limit, found, results, baseline)
    except TsconvertError as error:
        found, problem = None, str(error)
    if problem and limit.why:
        problem = f"{problem} ({limit.why})"
    return Line(
        what=limit.figure, status=FAILED if problem else PASSED, found=found, allowed=allowed, problem=problem,
        key=limit.key,
    )  # fmt: skip


def measured(limit: Limit, results: Mapping[str, dict[str, Any] | None]) -> Any:
    """The figure that a limit is about.

    Raises:
        TsconvertError: the result has no such figure, or a ratio is asked of what is no number.
    """
    found = figure(results[limit.where], limit.path)
    if limit.over is None:
        return found
    other = _named(limit.over, results)
    if not is_number(found) or not is_number(other) or other == 0:
        raise TsconvertError(
            f"{shown(found)} over {shown(other)} is no ratio of two numbers; name two, the second not 0"
        )
    return found / other


def _named(name: str, results: Mapping[str, dict[str, Any] | None]) -> Any:
    where, _, path = name.partition(".")
    return figure(results[where], path.split(".") if path else [])


def _problem(limit: Limit, found: Any, results: Mapping[str, dict[str, Any] | None], baseline: Baseline) -> str:
    """Why the figure is not allowed; empty if it is."""
    if limit.equal is not None and found != limit.equal:
        return f"is {shown(found)}, must be {shown(limit.equal)}"
    if limit.same_as is not None:
        other = _named(limit.same_as, results)
        if found != other:
            return f"is not that of {limit.same_as}{_first_difference(found, other)}"
    if limit.minimum is not None or limit.maximum is not None:
        values = found if isinstance(found, list | tuple) else [found]
        if not values or not all(is_number(value) for value in values):
            raise TsconvertError(
                f"is {shown(found)}, no number that could be held to a limit; give equal in place of min and max"
            )
        most, least = max(values), min(values)
        if limit.maximum is not None and not most <= limit.maximum:
            return f"is {shown(most)}, must be at most {shown(limit.maximum)}"
        if limit.minimum is not None and not least >= limit.minimum:
            return f"is {shown(least)}, must be at least {shown(limit.minimum)}"
    if limit.drift is not None:
        if not is_number(found):
            return f"is {shown(found)}, and only a number can drift; give .mean, .min or .max of it"
        return baseline.problem(limit, found)
    return ""


def _first_difference(found: Any, other: Any) -> str:
    if isinstance(found, list) and isinstance(other, list):
        for index, (one, two) in enumerate(zip(found, other, strict=False)):
            if one != two:
                return f": entry {index} is {shown(one)}, there {shown(two)}"
        return f": {len(found)} entries, there {len(other)}"
    return f": {shown(found)}, there {shown(other)}"


def _allowed(limit: Limit, baseline: Baseline) -> str:
    parts = []
    if limit.equal is not None:
        parts.append(f"{shown(limit.equal)}")
    if limit.same_as is not None:
        parts.append(f"as {limit.same_as}")
    if limit.minimum is not None:
        parts.append(f"at least {shown(limit.minimum)}")
    if limit.maximum is not None:
        parts.append(f"at most {shown(limit.maximum)}")
    if limit.drift is not None:
        parts.append(baseline.allowed(limit))
    return ", ".join(parts)


def table(lines: Sequence[Line]) -> list[str]:
    """The lines as rows of one table."""
    width = max((len(line.what) for line in lines), default=0)
    return [line.row(width) for line in lines]


def shown(value: Any) -> str:
    """A figure for people, short."""
    if value is None:
        return ""
    if is_number(value):
        return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        if value and all(is_number(entry) for entry in value) and any(isinstance(entry, float) for entry in value):
            return f"{shown(min(value))}..{shown(max(value))}"
        return f"{len(value)} entries"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
