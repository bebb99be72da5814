"""Disks that are full or fail, and memory that is short: what each command says, and what it leaves.

    python tests/reliability/faults.py         # a table; docs/reliability.md has it
    python tests/reliability/faults.py --only imatrix

A command must end with exit code 2 and one sentence, leave nothing torn under a final name and nothing changed that was
there, and do its work once the fault is gone. With memory it may also get by.
"""

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from failing_calls import SUPPORTED
from kill import Command, commands, whole
from tiny_models import dense_model, sparse_chain
from warm import Limits, Run, start

WRITING = ("write", "pwrite64", "copy_file_range")
MEBIBYTE = 1 << 20
MEMORY = (8, 128, 512, 1024)
"""MiB beyond what the process has after its start."""
CALLS = {
    "write: EIO": Limits(failing=dict.fromkeys(WRITING, errno.EIO)),
    "write: ENOSPC": Limits(failing=dict.fromkeys((*WRITING, "fallocate"), errno.ENOSPC)),
    "fsync: EIO": Limits(failing={"fsync": errno.EIO}),
    "rename: EIO": Limits(failing={"rename": errno.EIO}),
    "late write: EIO": Limits(failing=dict.fromkeys(WRITING, errno.EIO), from_operation=4),
}
SAYS = {
    errno.EIO: "the disk reports an error; look for its reason (dmesg) before anything else is written there",
    errno.ENOSPC: "the disk is full; make room or choose another --out",
    errno.EFBIG: "a file may not grow so large here; raise the limit (ulimit -f) or write to another file system",
}
ROOM = ("the disk has no room for", "free; make room or choose another --out", "the disk is full; ")


def problems(run: Run, says: tuple[str, ...], *, may_do: bool = False) -> list[str]:
    """What is wrong with the way in which a run with a fault ended."""
    found = []
    lines = [line for line in run.said.splitlines() if line.startswith("error: ")]
    if "Traceback" in run.said or "Exception ignored" in run.said:
        found.append(f"a traceback: {run.said[-1500:]}")
    if run.code == 0 and may_do:
        return found
    if run.code != 2:
        return [*found, f"exit code {run.code}: {run.said[-1500:]}"]
    if len(lines) != 1 or not any(each in lines[0] for each in says):
        found.append(f"says {run.said[-600:]!r}")
    return found


class Trial:
    """One command in a folder where outputs of others lie already."""

    def __init__(self, command: Command, models: Path, work: Path) -> None:
        self.command, self.models, self.work, self.number = command, models, work, 0
        folder = self.fresh(work)
        run = start(list(command.arguments), folder).end()
        assert run.code == 0, run.said
        self.reference = whole(folder)
        self.largest = max((folder / name).stat().st_size for name in self.reference if name != "older.gguf")

    def fresh(self, work: Path) -> Path:
        """A folder with an older output in it."""
        self.number += 1
        folder = work / f"{self.command.name.replace(' ', '_')}-{self.number}"
        folder.mkdir()
        shutil.copyfile(self.models / "f32.gguf", folder / "older.gguf")
        return folder

    def limited(
        self, limits: Limits, says: tuple[str, ...], *, may_do: bool = False, work: Path | None = None
    ) -> list[str]:
        """A run with the fault, and one without it behind it."""
        folder = self.fresh(work or self.work)
        run = start(list(self.command.arguments), folder, limits).end()
        found = problems(run, says, may_do=may_do)
        left = whole(folder)  # an export's file has its name before its card is written
        found += [f"{name} is torn" for name in left if left[name] != self.reference[name]]
        found += [] if "older.gguf" in left else ["what was there is gone"]
        if work is None and self.command.outputs[0] not in {name.split("/")[0] for name in left}:
            found += self._again(folder)
        shutil.rmtree(folder)
        return found

    def _again(self, folder: Path) -> list[str]:
        more = ["--resume"] if self.command.resumes else []
        run = start([*self.command.arguments, *more], folder).end()
        if run.code:
            return [f"afterwards: exit code {run.code}: {run.said[-600:]}"]
        return [] if whole(folder) == self.reference else ["afterwards: other bytes"]

    def full_disk(self) -> list[str]:
        """A small tmpfs that holds half of the largest output, by mount(8)."""
        with tempfile.TemporaryDirectory(prefix="tsconvert-full-") as place:
            size = (self.models / "f32.gguf").stat().st_size + self.largest // 2
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
            try:
                return self.limited(Limits(), ROOM, work=Path(place))
            finally:
                subprocess.run(["umount", place], check=True)

    def short_write(self) -> list[str]:
        """A limit on file sizes within the largest output: the write across it is short, the next one fails."""
        return self.limited(Limits(file_bytes=self.largest * 2 // 3), (SAYS[errno.EFBIG], *ROOM))

    def failing(self, name: str) -> list[str]:
        """One of CALLS."""
        limits = CALLS[name]
        says = (SAYS[next(iter(limits.failing.values()))], *ROOM[:1])
        return self.limited(limits, says, may_do=limits.from_operation > 0)  # the last write may be over by then

    def memory(self, mebibytes: int) -> list[str]:
        """A limit on the address space."""
        limits = Limits(more_memory_bytes=mebibytes * MEBIBYTE)
        return self.limited(limits, ("not enough memory; ", "(ulimit -v) leaves"), may_do=True)


def may_mount() -> bool:
    """Whether this process may mount a tmpfs."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], check=False, capture_output=True
        )
        return done.returncode == 0 and subprocess.run(["umount", place], check=False).returncode == 0


def trials(trial: Trial) -> dict[str, Callable[[], list[str]]]:
    """Every fault by name."""
    found: dict[str, Callable[[], list[str]]] = {"short write": trial.short_write}
    if os.geteuid() == 0 and may_mount():
        found["full tmpfs"] = trial.full_disk
    for name in CALLS if SUPPORTED else ():
        found[name] = lambda name=name: trial.failing(name)
    for mebibytes in MEMORY:
        found[f"{mebibytes} MiB"] = lambda mebibytes=mebibytes: trial.memory(mebibytes)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--fault", default="")
    options = parser.parse_args()
    bad = count = 0
    with tempfile.TemporaryDirectory(prefix="tsconvert-faults-") as work:
        models = Path(work) / "models"
        sparse_chain(dense_model(models / "dense"), models)
        for command in commands(models):
            if options.only not in command.name:
                continue
            for name, fault in trials(Trial(command, models, Path(work))).items():
                if options.fault not in name:
                    continue
                found = fault()
                bad, count = bad + bool(found), count + 1
                print(f"{command.name:<22} {name:<18} {'; '.join(found) or 'as it must be'}", flush=True)  # noqa: T201
    print(f"{count} faults, {bad} problems")  # noqa: T201
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
