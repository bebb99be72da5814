"""The stages of a recipe, one after the other, with a journal, so that a run that was ended goes on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from ...common.errors import TsconvertError
from ...common.files import UNFINISHED, write_json
from .recipe import Recipe, Stage

GOES_ON = ("relufy", "predictors")
"""Commands that an ended run can be gone on from."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What one stage did."""

    name: str
    command: str
    exit_code: int | None = None
    """None: it was not run, or not to its end."""
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


class Runner(Protocol):
    """Runs a stage in a folder; ``begun``: an earlier run was ended within it."""

    def __call__(self, stage: Stage, out: Path, *, begun: bool) -> StageResult:
        """What the stage did; its result is NAME.json in the folder."""


@dataclass(kw_only=True)
class StageJournal:
    """What is known of a run, in a file of its folder.

    Args:
        path: the file.
        head: what it says besides of the run.
    """

    path: Path
    head: dict[str, Any]

    def earlier(self, *, resume: bool) -> dict[str, StageResult]:
        """The stages that an earlier run in this folder began.

        Raises:
            TsconvertError: the folder holds an earlier run and ``resume`` is off, or its journal is damaged.
        """
        if not self.path.is_file():
            return {}
        found = {}
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))["stages"]
            for entry in entries:
                file = self.path.with_name(f"{entry['name']}.json")
                result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
                found[entry["name"]] = StageResult(**entry, result=result, reused=True)
        except (ValueError, KeyError, TypeError):
            raise TsconvertError(f"{self.path}: cannot be read; remove its folder and start again") from None
        if entries and not resume:
            raise TsconvertError(
                f"{self.path.parent}: holds an earlier check; go on with --resume, remove it, or choose another --out"
            )
        return found

    def write(self, results: list[StageResult], more: dict[str, Any] | None = None) -> None:
        """Keep what is known so far."""
        write_json(self.path, self.head | {"stages": [result.to_json() for result in results]} | (more or {}))


def left_unfinished(words: Sequence[str], folder: Path) -> list[Path]:
    """The folders, for `--resume`, of a stage's command that was ended while it ran in ``folder``."""
    outs = [folder / out for word, out in pairwise(words) if word in ("--out", "--predictors")]
    each = [out.with_name(out.name + ending) for out in outs for ending in UNFINISHED]
    return [path for path in each if path.is_dir()] if words[0] in GOES_ON else []


def run_stages(recipe: Recipe, journal: StageJournal, run: Runner, *, resume: bool) -> list[StageResult]:
    """Run the stages in the recipe's folder, each result in NAME.json there; after one that cannot work none is run.

    Args:
        resume: take over the first stages that an earlier run of the same commands finished.

    Raises:
        TsconvertError: the folder holds an earlier run and ``resume`` is off.
    """
    if not recipe.stages:
        return []
    earlier = journal.earlier(resume=resume)
    recipe.out.mkdir(parents=True, exist_ok=True)
    results: list[StageResult] = []
    broken = ""
    for stage in recipe.stages:
        found = earlier.get(stage.name)
        same = found is not None and found.command == str(stage)
        if broken:
            results.append(StageResult(name=stage.name, command=str(stage), error=f"not run: {broken} failed"))
        elif found is not None and same and found.exit_code == 0 and found.result:
            results.append(found)
        else:
            earlier = {}  # what follows on a stage that is run anew is run anew as well
            journal.write([*results, StageResult(name=stage.name, command=str(stage))])
            results.append(run(stage, recipe.out, begun=same))
            broken = "" if results[-1].ran else stage.name
            journal.write(results)
    return results
