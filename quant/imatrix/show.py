"""`imatrix --show-statistics`: figures on each matrix's inputs, those of `llama-imatrix --show-statistics`.

Followed are compute_statistics and compute_cossim of llama.cpp's tools/imatrix/imatrix.cpp, over the mean squares of
the inputs of a matrix, column by column.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...common.results import Result
from ...common.tables import table
from .file import Entry, load_imatrix

_ACTIVE = 1e-5


@dataclass(frozen=True, kw_only=True)
class MatrixStatistics:
    """The inputs of one matrix."""

    name: str
    total: float
    """Sum of the columns' mean squares."""
    least: float
    most: float
    mean: float
    deviation: float
    """Standard deviation over columns."""
    active: float
    """Share of the columns above 1e-5."""
    columns: int
    """Of all experts that were reached."""
    entropy: float
    """Of the columns' shares of the total, in bits."""
    relative_entropy: float
    """Over that of equal columns."""
    outliers: float
    """Share of the columns more than one deviation above the mean (ZD)."""
    similarity: float
    """Cosine with the sums of the same matrix one layer before; 0 in the first."""


@dataclass(frozen=True, kw_only=True)
class ImatrixStatistics(Result):
    """An importance matrix, matrix by matrix."""

    path: Path
    matrices: tuple[MatrixStatistics, ...]
    """By kind, within one the largest total first."""

    def __str__(self) -> str:
        head = ("tensor", "sum(act^2)", "min", "max", "mean", "sd", "active", "N", "entropy", "E norm", "ZD", "cos")
        rows = [
            (
                each.name, f"{each.total:.2f}", f"{each.least:.4f}", f"{each.most:.4f}", f"{each.mean:.2f}",
                f"{each.deviation:.2f}", f"{each.active:.2%}", str(each.columns), f"{each.entropy:.4f}",
                f"{each.relative_entropy:.2%}", f"{each.outliers:.2%}", f"{each.similarity:.4f}",
            )
            for each in self.matrices
        ]  # fmt: skip
        return table(head, rows)


def statistics(path: Path) -> ImatrixStatistics:
    """The figures of the importance matrix at ``path``.

    Raises:
        TsconvertError: it is none.
    """
    entries = load_imatrix(path).entries
    found = [_of(name, entry, entries) for name, entry in entries.items() if entry.counts_E.any()]
    found.sort(key=lambda each: (re.sub(r"^blk\.\d+\.", "", each.name), -each.total))
    return ImatrixStatistics(path=path, matrices=tuple(found))


def _of(name: str, entry: Entry, entries: Any) -> MatrixStatistics:
    reached_E = entry.counts_E > 0
    mean_C = (entry.sums_EC[reached_E] / entry.counts_E[reached_E, None]).astype(np.float64).reshape(-1)
    total, mean, deviation = float(mean_C.sum()), float(mean_C.mean()), float(mean_C.std())
    share_C = mean_C[mean_C > 0] / total if total > 0 else np.ones(1)
    entropy = float(-(share_C * np.log2(share_C)).sum())
    return MatrixStatistics(
        name=name, total=total, least=float(mean_C.min()), most=float(mean_C.max()), mean=mean, deviation=deviation,
        active=float((mean_C > _ACTIVE).mean()), columns=mean_C.size, entropy=entropy,
        relative_entropy=entropy / float(np.log2(mean_C.size)) if mean_C.size > 1 else 0.0,
        outliers=float((mean_C > mean + deviation).mean()) if deviation > 0 else 0.0,
        similarity=_similarity(name, entry, entries),
    )  # fmt: skip


def _similarity(name: str, entry: Entry, entries: Any) -> float:
    layer = re.match(r"blk\.(\d+)\.", name)
    before = entries.get(f"blk.{int(layer[1]) - 1}.{name[layer.end() :]}") if layer else None
    if before is None or before.sums_EC.shape != entry.sums_EC.shape:
        return 0.0
    a_EC, b_EC = entry.sums_EC.astype(np.float64), before.sums_EC.astype(np.float64)
    return float((a_EC * b_EC).sum() / max(1e-300, np.sqrt(np.square(a_EC).sum() * np.square(b_EC).sum())))
