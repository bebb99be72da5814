"""Kills commands at random moments and resumes them: nothing torn under a final name, and the same bytes in the end.

    python tests/reliability/kill.py            # 200 and more kills; docs/reliability.md has the figures
    python tests/reliability/kill.py --kills 3 --only quantize

Two kinds of moments: points of time, spread evenly over a run, and operations on files: right before an open for
writing, a rename, a removal and so on, 20 of them for each command.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_models import dense_model, sparse_chain
from warm import Run, start

VARYING = ("elapsed_s", "command", "out", "files", "report", "settings")
"""In records: times, and where the outputs lie."""
MOST_OPERATIONS = 20
SMALL = ["--tokens", "4K", "--context", "128"]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is killed."""

    name: str
    arguments: tuple[str, ...]
    """With paths relative to the run's folder."""
    outputs: tuple[str, ...]
    """Final names; the first one is what `--resume` and a second run are refused for."""
    resumes: bool = False
    share: float = 1.0
    """Of the kills."""


@dataclass
class Tally:
    """What was found."""

    kills: int = 0
    runs: int = 0
    torn: int = 0
    different: int = 0
    refused: int = 0
    run_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def commands(models: Path) -> list[Command]:
    """Every command that writes, on the models in ``models``."""
    dense, sparse, predictors, gguf = (str(models / name) for name in ("dense", "sparse", "predictors", "f32.gguf"))
    train = [*SMALL, "--steps", "12", "--batch-tokens", "512"]
    full = ["--recover", "full", "--full-tokens", "4K", "--full-batch-tokens", "512", "--evaluations", "4"]
    return [
        Command(name="relufy", arguments=("relufy", dense, "--out", "out", *train), outputs=("out",), resumes=True),
        Command(
            name="relufy --predictors",
            arguments=("relufy", dense, "--out", "out", "--predictors", "pred", "--rank", "8", *train),
            outputs=("out", "pred"), resumes=True, share=0.6,
        ),
        Command(
            name="relufy --recover full", arguments=("relufy", dense, "--out", "out", *train, *full), outputs=("out",),
            resumes=True, share=0.3,
        ),
        Command(
            name="predictors",
            arguments=("predictors", sparse, "--out", "pred", "--rank", "8", "--steps", "60", *SMALL),
            outputs=("pred",), resumes=True,
        ),
        Command(name="imatrix", arguments=("imatrix", dense, "--out", "i.gguf", *SMALL), outputs=("i.gguf",)),
        Command(
            name="export-gguf",
            arguments=("export-gguf", sparse, "--predictors", predictors, "--out", "m.gguf", "--type", "Q8_0"),
            outputs=("m.gguf", "m.gguf.json", "m.gguf.md"),
        ),
        Command(
            name="quantize", arguments=("quantize", gguf, "--out", "q.gguf", "--type", "Q4_K_M"), outputs=("q.gguf",)
        ),
    ]  # fmt: skip


def whole(folder: Path) -> dict[str, Any]:
    """What lies in ``folder`` under final names: path -> bytes, of records what does not vary between equal runs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or parts[0].startswith(".") or parts[0].endswith((".partial", ".local", ".full")):
            continue
        found["/".join(parts)] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.name in ("tsconvert.json", "m.gguf.json"):
        return _steady(json.loads(path.read_text(encoding="utf-8")))
    if path.name == "README.md":
        lines = path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if not line.startswith("    tsconvert ")]  # with --resume or without
    if path.name == "m.gguf.md":  # whole without its last part, which follows when the file is verified
        return path.read_bytes().partition(b"\nVerified against")[0]
    return path.read_bytes()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key not in VARYING}
    return [_steady(each) for each in value] if isinstance(value, list) else value


class Killer:
    """Kills one command again and again."""

    def __init__(self, command: Command, work: Path, seed: int, how: int = signal.SIGKILL) -> None:
        self.command, self.work, self.how = command, work, how
        self.rng = random.Random(f"{command.name} {seed}")
        self.tally, self.number = Tally(), 0
        first = self._run(self._fresh())
        reference = self._fresh()
        run = self._run(reference)
        if run.code:
            raise SystemExit(f"{command.name}: {run.code} {run.said}")
        self.reference, self.operations = whole(reference), run.operations
        self.elapsed_s = min(first.elapsed_s, run.elapsed_s)  # others may have been at work
        self.tally.run_s = self.elapsed_s

    def at_moments(self, kills: int, chain: int = 3) -> None:
        """So many kills at points of time; up to ``chain`` of them on the way to one output."""
        while self.tally.kills < kills:
            folder = self._fresh()
            for link in range(chain):
                moment_s = self.rng.uniform(0, self.elapsed_s)
                if self._done(folder) or not self._killed(folder, link > 0, moment_s=moment_s):
                    break
            self._finish(folder)

    def at_operations(self, most: int | None = None) -> None:
        """A kill before each operation on files, or before ``most`` of them."""
        points = range(1, self.operations + 1)
        for point in points if most is None else sorted(self.rng.sample(points, min(most, self.operations))):
            folder = self._fresh()
            self._killed(folder, resumed=False, die_at=point)
            self._finish(folder)

    def _killed(self, folder: Path, resumed: bool, moment_s: float | None = None, die_at: int = 0) -> bool:
        """Whether a run was killed, rather than done before; whatever there is now under a final name is whole."""
        run = self._start(folder, resumed, die_at).end(moment_s, self.how)
        killed = run.code == (-signal.SIGKILL if self.how == signal.SIGKILL else 130)
        self.tally.kills += killed
        where = f"killed after {moment_s}" if moment_s is not None else f"killed before operation {die_at}"
        if not killed and run.code:
            self._problem(folder, f"{where}: ended with {run.code}: {run.said[-600:]}", "refused")
        last = run.said.strip().rpartition("\n")[2]
        if "Traceback" in run.said or (self.how == signal.SIGINT and killed and not last.startswith("interrupted")):
            self._problem(folder, f"{where}: said {run.said[-600:]}", "refused")
        for name, content in self._whole(folder).items():
            if self.reference.get(name) != content:
                self._problem(folder, f"{where}: {name} is torn", "torn")
        return killed

    def _finish(self, folder: Path) -> None:
        """Run to the end, and compare."""
        if not self._done(folder):
            run = self._start(folder, resumed=True, die_at=0).end()
            if run.code:
                self._problem(folder, f"the last run ended with {run.code}: {run.said[-600:]}", "refused")
        found = self._whole(folder)
        wanted = [name for name in self.reference if name.split("/")[0] in self.command.outputs[:1]]
        for name in {*wanted, *found}:
            if found.get(name) != self.reference.get(name):
                self._problem(folder, f"{name} differs in the end", "different")
        shutil.rmtree(folder)

    def _whole(self, folder: Path) -> dict[str, Any]:
        try:
            return whole(folder)
        except ValueError as error:
            self._problem(folder, f"a record is torn: {error}", "torn")
            return {}

    def _done(self, folder: Path) -> bool:
        return (folder / self.command.outputs[0]).exists()

    def _start(self, folder: Path, resumed: bool, die_at: int) -> Any:
        more = ["--resume"] if resumed and self.command.resumes else []
        self.tally.runs += 1
        return start([*self.command.arguments, *more], folder, die_at=die_at)

    def _run(self, folder: Path) -> Run:
        return self._start(folder, resumed=False, die_at=0).end()

    def _fresh(self) -> Path:
        self.number += 1
        folder = self.work / f"{self.command.name.replace(' ', '_')}-{self.number}"
        folder.mkdir()
        return folder

    def _problem(self, folder: Path, what: str, kind: str) -> None:
        setattr(self.tally, kind, getattr(self.tally, kind) + 1)
        self.tally.problems.append(f"{self.command.name}, {folder.name}: {what}")


def kill_all(kills: int, only: str, seed: int, work: Path, how: int, say: Callable[[str], None]) -> list[Tally]:
    """Kill every command, ``kills`` times in all by the clock, and before every operation on files."""
    models = work / "models"
    sparse_chain(dense_model(models / "dense"), models)
    chosen = [command for command in commands(models) if only in command.name]
    shares = sum(command.share for command in chosen)
    tallies = []
    for command in chosen:
        killer = Killer(command, work, seed, how)
        killer.at_moments(max(1, round(kills * command.share / shares)))
        by_clock = killer.tally.kills
        if how == signal.SIGKILL:
            killer.at_operations(MOST_OPERATIONS)
        tally = killer.tally
        say(
            f"{command.name:<22} {tally.run_s:>6.1f} s {by_clock:>6} {tally.kills - by_clock:>6} {tally.runs:>6}"
            f" {tally.torn:>6} {tally.different:>10} {tally.refused:>8}"
        )
        for problem in tally.problems:
            say(f"  {problem}")
        tallies.append(tally)
    return tallies


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interrupt", action="store_true", help="Ctrl-C instead of SIGKILL.")
    options = parser.parse_args()
    how = signal.SIGINT if options.interrupt else signal.SIGKILL
    print("command                    run  clock  files   runs   torn  different  refused", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="tsconvert-kill-") as work:
        found = kill_all(
            options.kills,
            options.only,
            options.seed,
            Path(work),
            how,
            lambda line: print(line, flush=True),  # noqa: T201
        )
    bad = sum(each.torn + each.different + each.refused for each in found)
    print(f"{sum(each.kills for each in found)} kills, {bad} problems")  # noqa: T201
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
