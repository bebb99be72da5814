"""The command that this process was started as, for the records that outputs carry."""

import shlex
from collections.abc import Sequence

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """Called by the command line; a program that uses tsconvert's functions does not call it."""
    _typed[:] = ["tsconvert", *arguments]


def typed() -> str | None:
    """The command as a shell takes it, or None if there was none."""
    return shlex.join(_typed) if _typed else None
