"""The command that this process was started as, for the records that outputs carry."""

import shlex
from collections.abc import Sequence

_typed: list[str] = []


def remember(arguments: Sequence[str]) -> None:
    """The command line says what it was given; a program that calls the functions says nothing."""
    _typed[:] = ["tsconvert", *arguments]


def typed() -> str | None:
    """The command as a shell takes it, or None if there was none."""
    return shlex.join(_typed) if _typed else None
