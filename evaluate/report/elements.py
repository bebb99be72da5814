"""What the page is made of: sections of text, figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot with what to read in it."""

    title: str
    note: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    """(CSS class of its colour, what it is)."""
    wide: bool = False
    """Across both columns."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column names, the others are figures."""

    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: bool = False
    """The other columns are words as well, and stand at the left."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One heading and what is below it."""

    id: str
    title: str
    text: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    samples: tuple[tuple[str, str, str], ...] = ()
    """(mode, prompt, what the model wrote)."""
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the few figures at the top."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One box of the chain: a file or folder, and what made it of the one before."""

    name: str
    what: str
    facts: tuple[str, ...] = ()
    by: str = ""
    """The stage that made it."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the template shows."""

    title: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    chain: tuple[tuple[Step, ...], ...]
    """Columns from left to right."""
    sections: tuple[Section, ...]
    missing: tuple[tuple[str, str], ...] = ()
    """(figure, command that would add it)."""
    unreadable: tuple[str, ...] = ()
    footer: str = ""
