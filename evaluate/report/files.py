"""The report's sections on GGUF files: sizes, types, and what storing the weights cost."""

import re
import statistics
from collections.abc import Iterator
from typing import Any

from ...common.units import size_text
from ..records.outputs import Record
from .elements import Element, Figure, Table, series
from .findings import Findings
from .plots import Point, percent, stacked_bars, strip

_LAYER = re.compile(r"^blk\.(\d+)\.")
_ENGINES = {"turbosparse": "tsconvert's runner", "bamboo": "PowerInfer", "llama": "llama.cpp", "mistral": "llama.cpp"}
_MOST_FILES = 6
_NEGLIGIBLE = 1e-6  # below, it is the rounding of the comparison itself


def files(found: Findings) -> Iterator[Element]:
    """Every GGUF file: for whom, how big, of which types."""
    if not found.files:
        return
    kinds = list(dict.fromkeys(kind for file in found.files for kind in file.figures["types"]))
    rows = [
        (found.name(file.path), file.figures["types"], size_text(file.figures["size_bytes"])) for file in found.files
    ]
    yield Figure(
        title="Bytes by type",
        note="Weights as they are stored; norms and small tensors stay F32.",
        svg=stacked_bars("bytes of each file by type", rows, kinds),
        wide=True,
        legend=series(kinds),
    )
    yield Table(
        head=("file", "runs on", "size", "tensors", "bits a weight", "compared with its source"),
        rows=[_row(found, file) for file in found.files],
    )


def engine(file: Record) -> str:
    """Who runs a file."""
    if file.figures["magic"] == "PWRI":
        return "PowerInfer"
    return _ENGINES.get(file.figures["architecture"], "llama.cpp")


def _row(found: Findings, file: Record) -> list[str]:
    figures, verified = file.figures, file.figures.get("verification")
    if verified is None:
        state = "not recorded"
    else:
        wrong = len(verified["failures"])
        state = "every tensor, key and text right" if verified["passed"] else f"{wrong} failure{'s' * (wrong > 1)}"
    size_bytes = figures["size_bytes"]
    bits = f"{8 * size_bytes / max(1, figures['weights']):.2f}"
    return [found.name(file.path), engine(file), size_text(size_bytes), str(figures["tensor_count"]), bits, state]


def quantization(found: Findings) -> Iterator[Element]:
    """What storing each tensor cost, where the export recorded it."""
    recorded = [(file, errors) for file in found.files if (errors := _errors(file))]
    if not recorded:
        return
    places, groups = _places(list(dict.fromkeys(name for file, _ in recorded for name in file.figures["tensors"])))
    points: dict[str, list[Point]] = {}
    rows = []
    for file, errors in recorded:
        types = file.figures["tensors"]
        points[found.name(file.path)] = [
            (places[name], error, f"{name} {types[name]}: {percent(error)}")
            for name, error in errors.items()
            if name in types
        ]
        worst = max(errors, key=errors.__getitem__)
        figures = (str(len(errors)), percent(statistics.median(errors.values())), percent(errors[worst]))
        rows.append([found.name(file.path), *figures, f"{worst} {types.get(worst, '')}"])
    drawn = dict(list(points.items())[:_MOST_FILES])
    yield Figure(
        title="Error of each tensor",
        note="|stored − source| / |source| over all weights of a tensor, on a logarithmic scale, in the order of the"
        " file; rest the pointer on a dot for its name. What is stored as it was has no dot.",
        svg=strip("quantization error of each tensor", drawn, groups, title="relative error"),
        legend=series(drawn),
        wide=True,
    )
    yield Table(head=("file", "tensors that changed", "median error", "largest", "where"), rows=rows)


def _errors(file: Record) -> dict[str, Any]:
    """Tensor -> relative error, of those that storing changed."""
    errors = (file.figures.get("verification") or {}).get("errors") or {}
    return {name: error for name, error in errors.items() if error >= _NEGLIGIBLE}


def _places(names: list[str]) -> tuple[dict[str, float], list[str]]:
    """Where each tensor stands on the plot's axis (its layer, and the place in it), and the names of the layers."""
    layers = {name: int(match[1]) if (match := _LAYER.match(name)) else None for name in names}
    count = max((layer for layer in layers.values() if layer is not None), default=-1) + 1
    members: dict[int, list[str]] = {}
    for name, layer in layers.items():
        members.setdefault(count if layer is None else layer, []).append(name)
    places = {
        name: layer + (index + 1) / (len(group) + 1)
        for layer, group in members.items()
        for index, name in enumerate(group)
    }
    return places, [*map(str, range(count)), "others"]
