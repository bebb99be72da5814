"""A stage in a process of its own, so that its time and memory are its own: how `check` runs them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...common.files import write_json
from ...common.progress import note
from .recipe import Stage
from .stages import StageResult, left_unfinished


def run_in_process(stage: Stage, out: Path, *, begun: bool = False) -> StageResult:
    """Run ``stage`` in the folder ``out``; one that an earlier run began starts anew, for its time is a figure."""
    for left in left_unfinished(stage.arguments, out) if begun else []:
        shutil.rmtree(left)
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
