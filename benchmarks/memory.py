"""Peak anonymous memory and time of a command, from outside: pages of mapped files do not count."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    elapsed_s: float
    peak_anonymous_bytes: int
    """The highest RssAnon seen in /proc/PID/status, of the process and its children together."""
    output: str
    """stdout."""


def watched(command: list[str], every_s: float = 0.01) -> Usage:
    """Run ``command`` to its end.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    start_s = time.monotonic()
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(every_s)
        output = process.stdout.read() if process.stdout else ""
    elapsed_s = time.monotonic() - start_s
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Usage(elapsed_s, peak, output)


def _anonymous(pid: int) -> int:
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = int(line.split()[1]) * 1024
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += _anonymous(int(child))
    except OSError:  # it has just ended
        pass
    return total
