"""`tsconvert check`: a conversion with thresholds, as one file that a team keeps in its repository.

docs/check.md describes the file.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from ...common.errors import CheckFailedError, TsconvertError
from ...common.files import atomic_file
from ...common.locks import locked
from ...common.progress import note
from ...common.units import size_text
from ..recipe.own_process import run_in_process
from ..recipe.recipe import Recipe, read_recipe
from ..recipe.stages import StageJournal, StageResult, run_stages
from ..records.outputs import read_record
from .baseline import Baseline, read_baseline, write_baseline
from .ci_reports import annotations, junit
from .config import CheckConfig
from .judge import FAILED, PASSED, SKIPPED, Line, judge, table


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found."""

    spec: Recipe
    stages: list[StageResult]
    lines: list[Line]

    @property
    def failed(self) -> list[Line]:
        """What is not as it must be; what could not be known because of that is not named again."""
        return [line for line in self.lines if line.status == FAILED]

    def require(self) -> None:
        """Raise unless everything is as the spec says.

        Raises:
            CheckFailedError: the lines that failed, one below the other.
        """
        if self.failed:
            lines = "\n".join(f"  {line.what} {line.problem}" for line in self.failed)
            raise CheckFailedError(f"{self.spec.path}: {len(self.failed)} of {len(self.lines)} lines failed:\n{lines}")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "name": self.spec.name, "spec": str(self.spec.path), "out": str(self.spec.out), "passed": not self.failed,
            "stages": [stage.to_json() for stage in self.stages], "lines": [line.to_json() for line in self.lines],
        }  # fmt: skip

    def __str__(self) -> str:
        rows = [f"{'stage':<16} {'exit':>4} {'seconds':>9} {'CPU s':>9} {'peak memory':>12}"] if self.stages else []
        for stage in self.stages:
            code = "-" if stage.exit_code is None else str(stage.exit_code)
            row = f"{stage.name:<16} {code:>4} {stage.elapsed_s:>9.1f} {stage.cpu_s:>9.1f}"
            rows.append(f"{row} {size_text(stage.peak_bytes):>12}" + ("  (from before)" if stage.reused else ""))
        passed = sum(line.status == PASSED for line in self.lines)
        head = [*rows, ""] if rows else []
        return "\n".join([*head, *table(self.lines), f"{self.spec.name}: {passed} of {len(self.lines)} passed"])


def check(config: CheckConfig) -> CheckReport:
    """Run a check.

    Returns:
        Every line of it; ``require()`` raises if one failed.

    Raises:
        TsconvertError: the spec or the baseline is wrong, or the folder holds an earlier check.

    Example:
        >>> check(CheckConfig(spec=Path("examples/ci/tiny.check.toml"))).require()
    """
    spec = read_recipe(config.spec, out=config.out, variables=config.variables, options=config.options)
    if not spec.limits:
        raise TsconvertError(f"{spec.path}: limits is missing or empty; say what may come out, such as [limits.eval]")
    drifts = {limit.figure for limit in spec.limits if limit.drift is not None}
    if config.resume and not spec.stages:
        raise TsconvertError(f"--resume: {spec.path} has no stages that could be kept; leave it out")
    if (config.baseline or config.update_baseline) and not drifts:
        option = "--baseline" if config.baseline else "--update-baseline"
        raise TsconvertError(f"{option}: no limit of {spec.path} has a drift; leave it out, or give one a drift")
    baseline = read_baseline(config.baseline or spec.baseline, updating=config.update_baseline, needed=bool(drifts))
    with locked(spec.out, spec.out, folder=True) if spec.stages else nullcontext():
        return _checked(config, spec, baseline, drifts)


def _checked(config: CheckConfig, spec: Recipe, baseline: Baseline, drifts: set[str]) -> CheckReport:
    """Run the stages, look at the outputs, judge, and hand the report over."""
    stages = run_stages(spec, _journal(spec), run_in_process, resume=config.resume)
    results: dict[str, dict[str, Any] | None] = {stage.name: stage.result if stage.ran else None for stage in stages}
    lines = [_stage_line(stage) for stage in stages]
    for name, path in spec.outputs.items():
        try:
            results[name] = read_record(path).figures
        except TsconvertError as error:
            key = ("outputs", name)
            lines.append(Line(what=f"output {name}", status=FAILED, allowed="is whole", problem=str(error), key=key))
    lines += [judge(limit, results, baseline) for limit in spec.limits]
    report = CheckReport(spec=spec, stages=stages, lines=lines)
    if config.update_baseline and not report.failed and baseline.path is not None:
        write_baseline(baseline.path, {line.what: line.found for line in lines if line.what in drifts})
        note(f"{baseline.path}: written")
    _hand_over(config, report)
    return report


def _hand_over(config: CheckConfig, report: CheckReport) -> None:
    """To whoever reads files: the folder's record, JUnit, GitHub."""
    if report.spec.out.is_dir():
        record = report.to_json()
        _journal(report.spec).write(report.stages, {key: record[key] for key in ("passed", "lines")})
    if config.junit is not None:
        with atomic_file(config.junit) as stream:
            stream.write(junit(report.spec, report.lines, report.stages))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in annotations(report.spec, report.lines):
            note(line)


def _journal(spec: Recipe) -> StageJournal:
    head = {"format": "tsconvert check", "format_version": 1, "name": spec.name, "spec": str(spec.path)}
    return StageJournal(path=spec.out / "check.json", head=head)


def _stage_line(stage: StageResult) -> Line:
    status, found, problem = SKIPPED, None, stage.error
    if stage.exit_code is not None:
        found = f"exit code {stage.exit_code}"
        problem = f"ended with {found}: {stage.error}" if stage.exit_code or not stage.ran else ""
        status = FAILED if problem else PASSED
    key = ("stages", stage.name)
    return Line(what=f"stage {stage.name}", status=status, found=found, allowed="exit code 0", problem=problem, key=key)
