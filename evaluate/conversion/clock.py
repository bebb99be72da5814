"""How much of a budget is spent, over all runs of a conversion, also those that were killed."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BEAT_S = 5.0


class Clock:
    """The time that this run and earlier ones have worked.

    While it runs the journal's modification time follows the clock, so that a run that was killed tells when.

    Args:
        spent_s: what earlier runs took (`spent`).
    """

    def __init__(self, spent_s: float) -> None:
        self.before_s = spent_s
        self.began = time.time()
        self._start_s = time.monotonic()

    @property
    def spent_s(self) -> float:
        """The seconds so far."""
        return self.before_s + time.monotonic() - self._start_s

    def state(self) -> dict[str, float]:
        """For the journal."""
        return {"spent_before_s": round(self.before_s, 3), "began": self.began}

    @contextmanager
    def beating(self, journal: Path) -> Iterator[None]:
        """Keep the journal's modification time at now."""
        over = threading.Event()
        journal = journal.absolute()  # stages work in a folder of their own

        def beat() -> None:
            while not over.wait(_BEAT_S):
                with suppress(OSError):
                    os.utime(journal)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def spent(state: dict[str, float], journal: Path) -> float:
    """The seconds that all runs so far have worked, by what the last one left."""
    return float(state["spent_before_s"]) + max(0.0, journal.stat().st_mtime - float(state["began"]))
