"""What the page is made of: sections of text, figures and tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Legend = Sequence[tuple[str, str]]
"""(CSS class of its colour, what it is)."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One plot with what to read in it."""

    title: str
    note: str
    svg: str
    legend: Legend = ()
    wide: bool = False
    """Across both columns."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column names, the others are figures."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: bool = False
    """The other columns are words as well, and stand at the left."""


class Sample(NamedTuple):
    """What a model wrote."""

    mode: str
    prompt: str
    text: str


class Command(NamedTuple):
    """A command line."""

    line: str


Element = str | Figure | Table | Sample | Command
"""What a section yields: sentences come first on the page, then figures, tables, samples and commands."""


class Tile(NamedTuple):
    """One of the few figures at the top."""

    value: str
    label: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One box of the chain: a file or folder, and what made it of the one before."""

    name: str
    what: str
    facts: Sequence[str] = ()
    by: str = ""
    """The stage that made it."""


def series(names: Iterable[str]) -> Legend:
    """The legend of things in the page's colours, by their order."""
    return [(f"s{i % 6}", name) for i, name in enumerate(names)]


LAYERS: Legend = (("early", "first layer"), ("late", "last layer"))
