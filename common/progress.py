"""Progress on stderr: a bar on a terminal, plain lines elsewhere, silence for what takes under two seconds."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Step = Callable[[str], None]
_QUIET_S = 2.0
_LINE_EVERY_S = 10.0
_WITHIN_EVERY_S = 30.0


def speaks() -> bool:
    """Whether this process prints messages: of several (torchrun) only the first does."""
    return os.environ.get("RANK", "0") == "0"


def note(message: str) -> None:
    """Print a line on stderr; stdout stays free for results."""
    if speaks():
        print(message, file=sys.stderr, flush=True)  # noqa: T201


_open: list["_Lines | _Bar"] = []


def at(what: str) -> None:
    """Report progress within a step of the innermost `progress`: one step of a big model takes minutes."""
    if _open:
        _open[-1].at(what)


@contextmanager
def progress(title: str, total: int) -> Iterator[Step]:
    """Count ``total`` steps of work called ``title``.

    Yields:
        A function to call after each step, with a few words on its result (may be empty).

    Example:
        >>> with progress("layers", 2) as step:
        ...     step("loss 0.3")
        ...     step("loss 0.2")
    """
    lines = _Bar(title, total) if sys.stderr.isatty() and speaks() else _Lines(title, total)
    _open.append(lines)
    try:
        yield lines.step
    finally:
        _open.remove(lines)
        lines.close()


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self.start_s = time.monotonic()
        self.shown_s = self.spoke_s = self.start_s
        self.said = False

    def step(self, what: str = "") -> None:
        self.done += 1
        now = time.monotonic()
        last = self.done == self.total and self.said
        if last or (now - self.start_s > _QUIET_S and (not self.said or now - self.shown_s > _LINE_EVERY_S)):
            self.said, self.shown_s = True, now
            self._say(now, what)

    def at(self, what: str) -> None:
        now = time.monotonic()
        if now - self.spoke_s > _WITHIN_EVERY_S:
            self._say(now, what)

    def _say(self, now: float, what: str) -> None:
        self.spoke_s = now
        note(f"{self.title} {self.done}/{self.total}, {now - self.start_s:.0f} s" + (f", {what}" if what else ""))

    def close(self) -> None:
        pass


class _Bar:
    def __init__(self, title: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.title, self.total, self.done = title, total, 0
        self.start_s = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"), console=Console(stderr=True), transient=False,
        )  # fmt: skip
        self.task: int | None = None

    def step(self, what: str = "") -> None:
        self.done += 1
        self.at(what)

    def at(self, what: str) -> None:
        if self.task is None and time.monotonic() - self.start_s > _QUIET_S:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, what=what)
        if self.task is not None:
            self.bar.update(self.task, completed=self.done, what=what)  # type: ignore[arg-type]

    def close(self) -> None:
        if self.task is not None:
            self.bar.stop()
