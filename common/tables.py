"""Tables for people, as text."""

import io
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """A table whose first column names and whose others are figures.

    Args:
        head: one word or a few for each column.
        rows: as many cells each.
        title: a line above it.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(head):
        found.add_column(Text(name), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        found.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000, color_system=None).print(found)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([title, *lines] if title else lines).rstrip()
