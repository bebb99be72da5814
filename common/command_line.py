"""The command that this process was started as, for the records that outputs carry."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Called by the command line; a program that uses tsconvert's functions does not call it."""
    _typed[:] = ["tsconvert", *arguments]


def typed() -> str | None:
    """The command as a shell takes it, or None if there was none."""
    return shlex.join(_typed) if _typed else None


@contextmanager
def as_if(arguments: Sequence[str]) -> Iterator[None]:
    """What is done meanwhile is recorded as done by the command with these arguments."""
    kept = list(_typed)
    remember(arguments)
    try:
        yield
    finally:
        _typed[:] = kept
