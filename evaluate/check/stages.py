"""Running the stages of a check: each a process of its own, so that its time and memory are its own."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import write_json
from ...common.progress import note
from .spec import CheckSpec, Stage

JOURNAL = "check.json"


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What one stage did."""

    name: str
    command: str
    exit_code: int | None = None
    """None: it was not run."""
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    """CPU time of all its threads."""
    peak_bytes: int = 0
    """Largest resident memory, mapped file pages included."""
    error: str = ""
    reused: bool = False
    """Taken over from an earlier run of the same command."""
    result: dict[str, Any] = field(default_factory=dict)
    """What it printed with --json, and these figures as `process`."""

    @property
    def ran(self) -> bool:
        """It finished its work; a verification in it may have failed."""
        return self.exit_code in (0, 1) and bool(self.result)

    def to_json(self) -> dict[str, Any]:
        """All but the result, which has a file of its own."""
        return {key: value for key, value in asdict(self).items() if key not in ("result", "reused")}


def run_stages(spec: CheckSpec, *, resume: bool) -> list[StageResult]:
    """Run the stages in the spec's folder, each result in NAME.json there; after one that cannot work none is run.

    Args:
        resume: take over the first stages that an earlier check of the same commands finished.

    Raises:
        TsconvertError: the folder holds an earlier check and ``resume`` is off.
    """
    if not spec.stages:
        return []
    earlier = _earlier(spec.out / JOURNAL, resume=resume)
    spec.out.mkdir(parents=True, exist_ok=True)
    results: list[StageResult] = []
    broken = ""
    for stage in spec.stages:
        found = earlier.get(stage.name)
        if broken:
            results.append(StageResult(name=stage.name, command=str(stage), error=f"not run: {broken} failed"))
        elif found is not None and found.command == str(stage) and found.exit_code == 0:
            results.append(found)
        else:
            earlier = {}  # what follows on a stage that is run anew is run anew as well
            results.append(_run(stage, spec.out))
            broken = "" if results[-1].ran else stage.name
            write_journal(spec, results)
    return results


def write_journal(spec: CheckSpec, results: list[StageResult], more: dict[str, Any] | None = None) -> None:
    """Keep what is known so far."""
    head = {"format": "tsconvert check", "format_version": 1, "name": spec.name, "spec": str(spec.path)}
    write_json(spec.out / JOURNAL, head | {"stages": [result.to_json() for result in results]} | (more or {}))


def _earlier(journal: Path, *, resume: bool) -> dict[str, StageResult]:
    """The stages that an earlier check in this folder ran."""
    if not journal.is_file():
        return {}
    found = {}
    try:
        entries = json.loads(journal.read_text(encoding="utf-8"))["stages"]
        for entry in entries:
            file = journal.with_name(f"{entry['name']}.json")
            result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            if result:
                found[entry["name"]] = StageResult(**entry, result=result, reused=True)
    except (ValueError, KeyError, TypeError):
        raise TsconvertError(f"{journal}: cannot be read; remove its folder and start again") from None
    if entries and not resume:
        raise TsconvertError(
            f"{journal.parent}: holds an earlier check; go on with --resume, remove it, or choose another --out"
        )
    return found


def _run(stage: Stage, out: Path) -> StageResult:
    note(f"-- {stage.name}: {stage}")
    command = [sys.executable, "-P", "-m", "tsconvert", *stage.arguments]
    command += [] if "--json" in stage.arguments else ["--json"]
    start_s = time.monotonic()
    printed, said, code, used = _follow(command, out)
    try:
        result = json.loads(printed)
    except ValueError:
        result = {}
    figures = {"elapsed_s": round(time.monotonic() - start_s, 3), **used}
    if isinstance(result, dict) and result:
        result = {**result, "command": str(stage), "process": figures}
        write_json(out / f"{stage.name}.json", result)
    error = said if code else ""
    return StageResult(name=stage.name, command=str(stage), exit_code=code, error=error, result=result, **figures)


def _follow(command: list[str], folder: Path) -> tuple[bytes, str, int, dict[str, Any]]:
    """(stdout, last line of stderr, exit code, what it used) of a command; its stderr goes on to ours as it comes."""
    from threading import Thread

    read, write = os.pipe()
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("measured_process.py")), str(write)]
    process = subprocess.Popen(
        [*launcher, *command], cwd=folder, pass_fds=[write],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(write)
    printed: list[bytes] = []
    assert process.stdout is not None
    assert process.stderr is not None
    reader = Thread(target=lambda: printed.append(process.stdout.read()))  # type: ignore[union-attr]
    reader.start()
    last = ""
    with process.stdout, process.stderr, os.fdopen(read) as report:
        for line in process.stderr:
            text = line.decode(errors="replace").rstrip()
            last = text.strip() or last
            note(f"   {text}")
        reader.join()
        used = report.read()
    code = process.wait()
    return b"".join(printed), last.removeprefix("error: "), code, json.loads(used or "{}")
