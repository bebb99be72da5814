"""A stage in this process: libraries are loaded once for all, and what one leaves in memory is given back.

`check` runs the same stages in processes of their own, where time and memory are figures. Here a start of Python, torch
and transformers costs seconds a stage; a model is gone when its stage ends, and the allocator hands its pages back.
"""

import ctypes
import gc
import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import click

from ...common import command_line
from ...common.errors import CheckFailedError, TsconvertError
from ...common.files import write_json
from ...common.progress import note
from ...convert.commands import relufy
from ...predictors.commands import predictors
from ...predictors.profile.commands import profile
from ...quant.commands import quantize
from ...quant.imatrix.commands import imatrix
from ...runner.commands import bench, run
from ..commands import evaluate, export_gguf
from ..inspect.commands import inspect
from ..plan.commands import plan
from ..recipe.recipe import Stage
from ..recipe.stages import GOES_ON, StageResult, left_unfinished
from ..records.outputs import read_record
from ..verify.commands import verify

COMMANDS: dict[str, click.Command] = {
    str(command.name): command
    for command in (
        relufy, profile, predictors, imatrix, export_gguf, quantize, run, bench, evaluate, verify, inspect, plan
    )
}  # fmt: skip
_OUTPUTS = ("--out", "--save-logits")


class SameProcess:
    """Runs stages here (`recipe.stages.Runner`).

    Args:
        limit: the seconds that a stage with a --time-limit may take, in place of those that it names.
    """

    def __init__(self, limit: Callable[[Stage], float] | None = None) -> None:
        self.limit = limit

    def __call__(self, stage: Stage, out: Path, *, begun: bool) -> StageResult:
        """Run ``stage`` in the folder ``out``.

        Raises:
            TsconvertError: as the command does.
        """
        with chdir(out):
            words = self._words(stage, begun=begun)
            start_s, cpu_s = time.monotonic(), time.process_time()
            found = _finished(words) if begun else None
            if found is None:
                note(f"-- {stage.name}: tsconvert {shlex.join(words)}")
                code, found, said, error = _called(words)
                note("\n".join(f"   {line}" for line in said.splitlines()))
            else:
                code, error = 0, ""
            used = {
                "elapsed_s": round(time.monotonic() - start_s, 3), "cpu_s": round(time.process_time() - cpu_s, 3)
            }  # fmt: skip
            found = {**found, "command": shlex.join(["tsconvert", *words]), "process": used}
            write_json(Path(f"{stage.name}.json"), found)
        return StageResult(
            name=stage.name, command=str(stage), exit_code=code, error=error, result=found, elapsed_s=used["elapsed_s"],
            cpu_s=used["cpu_s"],
        )  # fmt: skip

    def _words(self, stage: Stage, *, begun: bool) -> list[str]:
        """The stage's command, which goes on where an earlier run was ended, in the time that is left."""
        words = list(stage.arguments)
        if "--time-limit" in words and self.limit is not None:
            at = words.index("--time-limit") + 1
            words[at] = f"{max(1.0, self.limit(stage)):.0f}s"
        if begun and "--resume" not in words and left_unfinished(words, Path()):
            words.append("--resume")
        return words


def _finished(words: list[str]) -> dict[str, Any] | None:
    """What a stage found that was ended between its output and its record; half of an output goes.

    A folder, or a file that has a record beside it, gets its name when it is whole, and is what cost the time.
    """
    for at, word in enumerate(words[:-1]):
        out = Path(words[at + 1])
        if word not in _OUTPUTS or not out.exists():
            continue
        if words[0] in GOES_ON:
            figures = read_record(out).figures
            return {key: value for key, value in figures.items() if key not in ("spec", "settings", "command")}
        for path in (out, out.with_name(out.name + ".json"), out.with_name(out.name + ".md")):
            path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path)
    return None


def _called(words: list[str]) -> tuple[int, dict[str, Any], str, str]:
    """(exit code, the JSON that a command prints, the same for people, what failed)."""
    printed, error, code = io.StringIO(), "", 0
    command = COMMANDS[words[0]]
    json_too = [] if "--json" in words else ["--json"]
    try:
        with (
            command_line.as_if(words),
            redirect_stdout(printed),
            command.make_context(words[0], [*words[1:], *json_too]) as context,
        ):
            try:
                command.invoke(context)
            except CheckFailedError as failed:
                code, error = failed.exit_code, str(failed)
    except click.ClickException as wrong:
        raise TsconvertError(f"tsconvert {shlex.join(words)}: {wrong.format_message()}") from None
    finally:
        give_back()
    return code, json.loads(printed.getvalue()), str(context.obj), error


def give_back() -> None:
    """Free what a stage held: cycles, freed pages that the C library keeps, and the GPU's cache."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
