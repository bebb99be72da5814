"""Feed damaged files to every reader: `python tests/fuzz/fuzz.py --inputs 200000 --seed 1`.

Each input is a real tiny file with a few places changed (bytes, or the structure: counts, shapes, offsets, types,
names), made from the seed and its number alone. It is read in a process of its own kind; a crash, a hang of over 5
seconds, memory far beyond the file's size, or an exception that is no TsconvertError is a finding. Findings are saved
as folders; `--only FAMILY:NUMBER` makes one input again.
"""

import argparse
import json
import os
import queue
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
_HANG_S = 5.0
_START_S = 900.0  # until a worker has imported and compiled everything
_BUSY = 0.8  # of the time it must have worked to count as hanging; or done nothing for `_STUCK_S`
_STUCK_S = 60.0
_POLL_S = 0.1
_MOST_KEPT = 3  # inputs of a kind of finding


class Run:
    """One family's share of a run.

    Args:
        keep: where findings are saved.
    """

    def __init__(self, family: str, seed: int, count: int, keep: Path) -> None:
        self.family, self.seed, self.count, self.keep = family, seed, count, keep
        self.counts: Counter[str] = Counter()
        self.findings: list[tuple[int, str]] = []

    def run(self) -> None:
        """Workers, one after the other, until all inputs are read."""
        first = 0
        with tempfile.NamedTemporaryFile() as watch:
            while first < self.count:
                first = self._worker(first, self.count, Path(watch.name))

    def _worker(self, first: int, end: int, watch: Path, *, alone: bool = False) -> int:
        """Read inputs from ``first`` on in one process; returns where the next one goes on.

        Args:
            alone: the input seemed to hang among others, perhaps for want of a core: this is its second trial.
        """
        watch.write_bytes(struct.pack("<q", -1))
        command = [sys.executable, str(Path(__file__).parent / "worker.py"), self.family, str(self.seed), str(first)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
        process = subprocess.Popen(
            [*command, str(end - first), str(watch)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=environment,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_pump, args=(process, lines), daemon=True)
        reader.start()
        last, since, began_s = -1, 0.0, 0.0
        while process.poll() is None:
            time.sleep(_POLL_S)  # what is stopped with this process does not count as hanging
            self._take(lines)
            now = struct.unpack("<q", watch.read_bytes()[:8])[0]
            if _state(process.pid) == "T":  # stopped, by whoever needs the machine
                continue
            since = since + _POLL_S if now == last else 0.0
            began_s = began_s if now == last else _cpu_s(process.pid)
            last = now
            busy = now < 0 or _cpu_s(process.pid) - began_s > _BUSY * _HANG_S or since > _STUCK_S
            if busy and since > (_HANG_S if now >= 0 else _START_S):
                process.kill()
                process.wait()
                reader.join()
                self._take(lines)
                if not alone and now >= 0:
                    return self._worker(now, now + 1, watch, alone=True)
                self._found(last, f"hangs for over {_HANG_S:g} s")
                return last + 1
        reader.join()
        self._take(lines)
        last = struct.unpack("<q", watch.read_bytes()[:8])[0]
        if process.returncode == 0:
            return end
        if last < 0:
            raise SystemExit(f"the worker of {self.family} did not start: exit code {process.returncode}")
        self._found(last, f"ended the process: exit code {process.returncode}")
        return last + 1

    def _take(self, lines: "queue.Queue[str | None]") -> None:
        while not lines.empty():
            line = lines.get()
            told = json.loads(line) if line else {}
            self.counts.update(told.get("counts", {}))
            if "verdict" in told:
                self._found(told["number"], told["verdict"], counted=True)

    def _found(self, number: int, verdict: str, *, counted: bool = False) -> None:
        if not counted:
            self.counts["found"] += 1
        self.findings.append((number, verdict))
        alike = sum(_kind(other) == _kind(verdict) for _, other in self.findings)
        if alike <= _MOST_KEPT:
            print(f"FOUND {self.family}:{number} {verdict}", flush=True)
            make_again(self.family, self.seed, number, self.keep / f"{self.family}-{number}")


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; of one that is gone, nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["Z", *["0"] * 40]


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _cpu_s(pid: int) -> float:
    """Seconds of work that a process has done: on a busy machine it may wait as long as it likes."""
    parts = _stat(pid)
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def _pump(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)


def _kind(verdict: str) -> str:
    return verdict.split(": ")[0]


def make_again(family: str, seed: int, number: int, folder: Path) -> None:
    """Write an input into ``folder``."""
    from readers import FAMILIES
    from worker import seeded

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    FAMILIES[family].make(seeded(seed, family, number), folder)


def fuzz(inputs: int, seed: int, families: list[str], keep: Path) -> list[Run]:
    """Read ``inputs`` inputs, shared out among the families."""
    from readers import FAMILIES

    whole = sum(FAMILIES[name].share for name in families)
    runs = []
    for name in families:
        run = Run(name, seed, max(1, round(inputs * FAMILIES[name].share / whole)), keep)
        start_s = time.monotonic()
        run.run()
        elapsed_s = time.monotonic() - start_s
        parts = ", ".join(f"{count} {kind}" for kind, count in sorted(run.counts.items()))
        print(f"{name:<12} {run.count:>7} inputs in {elapsed_s:6.0f} s: {parts}", flush=True)
        runs.append(run)
    return runs


def main() -> None:
    """Parse, run, sum up."""
    from readers import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "tsconvert-fuzz")
    parser.add_argument("--only", help="FAMILY:NUMBER, to be made and read in this process")
    given = parser.parse_args()
    if given.only:
        from worker import load_modules, read_one

        load_modules()
        family, number = given.only.split(":")
        folder = given.keep / f"{family}-{number}"
        make_again(family, given.seed, int(number), folder)
        print(folder, read_one(family, given.seed, int(number), folder), sep="\n")
        return
    runs = fuzz(given.inputs, given.seed, given.family or list(FAMILIES), given.keep)
    total = sum((run.counts for run in runs), Counter())
    kinds = Counter(f"{run.family}: {_kind(verdict)}" for run in runs for _, verdict in run.findings)
    print(json.dumps({"seed": given.seed, "inputs": sum(total.values()), **total, "findings": kinds}))
    sys.exit(1 if kinds else 0)


if __name__ == "__main__":
    main()
