"""What `tsconvert inspect` found, for people and as JSON."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import printable
from ...common.results import Result
from ...common.units import size_text

TensorRow = tuple[str, str, list[int], int]
"""Name, type, shape (rows first) and bytes."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a header."""

    title: str
    header: list[str]
    rows: list[list[Any]]

    def __str__(self) -> str:
        cells = [self.header, *([_cell(value) for value in row] for row in self.rows)]
        first, *widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        rows = ([row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in cells)
        return "\n".join([f"{self.title}:", *(f"  {'  '.join(row)}".rstrip() for row in rows)])


@dataclass(frozen=True, kw_only=True)
class Inspection(Result):
    """What was found."""

    path: str
    kind: str
    whole: bool
    """Everything that belongs to it is there."""
    state: str
    """The same in words: what was looked at, or what is missing."""
    facts: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    tensors: list[TensorRow] = field(default_factory=list)

    def __str__(self) -> str:
        facts = {"whole": f"{'yes' if self.whole else 'NO'}, {self.state}"} | self.facts
        width = max(map(len, facts))
        lines = [f"{self.path}: {self.kind}"]
        lines += [f"  {name:<{width}}  {value}" for name, value in facts.items() if value not in (None, "", [])]
        lines += [str(table) for table in self.tables]
        lines += [f"  {name:<48} {kind:<6} {shape!s:<20} {size_text(size)}" for name, kind, shape, size in self.tensors]
        return printable("\n".join(lines))


def parts_table(parts: Iterable[tuple[str, str, int, int]]) -> Table:
    """Sizes by part of the model; ``parts`` are of each tensor its part, type, weights and bytes."""
    rows: dict[str, list[Any]] = {}
    for part, kind, weights, size in parts:
        row = rows.setdefault(part, [part, 0, 0, {}, 0])
        row[1], row[2], row[4] = row[1] + 1, row[2] + weights, row[4] + size
        row[3][kind] = row[3].get(kind, 0) + size
    whole = sum(row[4] for row in rows.values())
    shown: list[list[Any]] = []
    for part, count, weights, kinds, size in rows.values():
        types = " ".join(sorted(kinds, key=kinds.__getitem__, reverse=True))
        shown.append([part, count, weights, types, size_text(size), f"{size / max(whole, 1):.1%}"])
    return Table(title="parts", header=["part", "tensors", "weights", "types", "size", "share"], rows=shown)


def part_of(role: str) -> str:
    """The part of a model that a tensor's role (`attn_q`, `ffn_gate`) belongs to."""
    if role in ("token_embd", "output", "router"):
        return {"token_embd": "embedding", "output": "output head", "router": "routers"}[role]
    if role.endswith("norm"):
        return "norms"
    if role.startswith("attn"):
        return "attention"
    if role.startswith("ffn_"):
        return f"FFN {role.split('_')[1]}"
    return "predictors" if role.startswith("fc") else "other"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
