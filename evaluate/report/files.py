"""The report's sections on files and speed: sizes, types, what quantization cost, tokens per second, commands."""

import re
import shlex
import statistics
from itertools import pairwise
from typing import Any

from ...common.units import size_text
from ..records.outputs import Record
from .elements import Figure, Section, Table
from .findings import Findings
from .plots import ladder, stacked, strip
from .svg import percent

_LAYER = re.compile(r"^blk\.(\d+)\.")
_ENGINES = {"turbosparse": "tsconvert's runner", "bamboo": "PowerInfer", "llama": "llama.cpp", "mistral": "llama.cpp"}
_MOST_FILES = 6
_FAINT = 1e-6  # below, it is the rounding of the comparison itself
_MODES = (
    "Dense mode computes every neuron; exact mode computes up and down only where the gate is positive, with the same"
    " result; predicted mode computes what the predictors name."
)


def files(found: Findings) -> Section | None:
    """Every GGUF file: for whom, how big, of which types."""
    if not found.files:
        return None
    kinds = list(dict.fromkeys(kind for file in found.files for kind in file.figures["types"]))
    rows = [
        (found.name(file.path), file.figures["types"], size_text(file.figures["size_bytes"])) for file in found.files
    ]
    figure = Figure(
        title="Bytes by type",
        note="Weights as they are stored; norms and small tensors stay F32.",
        svg=stacked("bytes of each file by type", rows, kinds),
        wide=True,
        legend=tuple((f"s{i % 6}", kind) for i, kind in enumerate(kinds)),
    )
    table = Table(
        head=("file", "runs on", "size", "tensors", "bits a weight", "compared with its source"),
        rows=[_row(found, file) for file in found.files],
    )
    return Section(id="files", title="The files", figures=(figure,), tables=(table,))


def engine(file: Record) -> str:
    """Who runs a file."""
    if file.figures["magic"] == "PWRI":
        return "PowerInfer"
    return _ENGINES.get(file.figures["architecture"], "llama.cpp")


def _row(found: Findings, file: Record) -> tuple[str, ...]:
    figures = file.figures
    verified = figures.get("verification")
    if verified is None:
        state = "not recorded"
    else:
        state = "every tensor, key and text right" if verified["passed"] else f"{len(verified['failures'])} failures"
    bits = f"{8 * figures['size_bytes'] / max(1, figures['weights']):.2f}"
    return (
        found.name(file.path),
        engine(file),
        size_text(figures["size_bytes"]),
        str(figures["tensor_count"]),
        bits,
        state,
    )


def quantization(found: Findings) -> Section | None:
    """What storing each tensor cost, where the export recorded it."""
    measured = [file for file in found.files if _measured(file)]
    if not measured:
        return None
    names = list(dict.fromkeys(name for file in measured for name in file.figures["tensors"]))
    layers = max((_layer(name) for name in names), default=0) + 1
    shown = measured[:_MOST_FILES]
    series = {found.name(file.path): _points(file, names, layers) for file in shown}
    figure = Figure(
        title="Error of each tensor",
        note="|stored − source| / |source| over all weights of a tensor, on a logarithmic scale, in the order of the"
        " file; rest the pointer on a dot for its name. What is stored as it was has no dot.",
        svg=strip("quantization error of each tensor", series, _groups(layers), title="relative error"),
        legend=tuple((f"s{i}", name) for i, name in enumerate(series)),
        wide=True,
    )
    rows = []
    for file in measured:
        stored: dict[str, float] = file.figures["verification"]["errors"]
        errors = {name: error for name, error in stored.items() if error >= _FAINT}
        worst = max(errors, key=lambda name: errors[name])
        kind = file.figures.get("tensors", {}).get(worst, "")
        middle = statistics.median(errors.values())
        rows.append(
            (found.name(file.path), str(len(errors)), percent(middle), percent(errors[worst]), f"{worst} {kind}")
        )
    table = Table(head=("file", "tensors that changed", "median error", "largest", "where"), rows=rows)
    return Section(id="quantization", title="What storing the weights cost", figures=(figure,), tables=(table,))


def _measured(file: Record) -> bool:
    errors = (file.figures.get("verification") or {}).get("errors") or {}
    return any(error >= _FAINT for error in errors.values())


def _layer(name: str) -> int:
    """-1 for what is in no layer."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _groups(layers: int) -> list[str]:
    return [*map(str, range(layers)), "others"]


def _points(file: Record, names: list[str], layers: int) -> list[tuple[float, float, str]]:
    """(layer and place in it, error, what); the names of all files give every tensor one place."""
    kinds = file.figures["tensors"]
    members: dict[int, list[str]] = {}
    for name in names:
        members.setdefault(_layer(name), []).append(name)
    points = []
    for name, error in file.figures["verification"]["errors"].items():
        if error < _FAINT or name not in kinds:
            continue
        group = members[_layer(name)]
        place = (group.index(name) + 1) / (len(group) + 1)
        at = layers if _layer(name) < 0 else _layer(name)
        points.append((at + place, error, f"{name} {kinds[name]}: {percent(error)}"))
    return points


def speed(found: Findings) -> Section | None:
    """Tokens per second of each mode, of each file that was measured."""
    figures, tables = [], []
    for bench in found.of("bench"):
        rows: list[dict[str, Any]] = bench["rows"]
        slowest = next((row["tokens_per_s"] for row in rows if row["mode"] == "dense"), None)
        bars = [
            (row["mode"], row["tokens_per_s"],
             f"{row['tokens_per_s']:,.1f}" + (f" · {row['tokens_per_s'] / slowest:.2f} ×" if slowest else ""))
            for row in rows
        ]  # fmt: skip
        figures.append(
            Figure(
                title=f"{found.name(bench['file'])}: tokens per second",
                note=f"Generation of {bench['generate']} tokens on {bench['threads']} threads, median of"
                f" {bench['repetitions']}.",
                svg=ladder("tokens per second of each mode", bars, reference=None, log=False),
                wide=True,
            )
        )
        tables.append(
            Table(
                head=("mode", "generation, tokens/s", "prompt, tokens/s", "rows of the FFN read", "spread"),
                rows=[
                    (
                        row["mode"], f"{row['tokens_per_s']:,.1f}", f"{row['prompt_tokens_per_s']:,.1f}",
                        percent(row["density"]["rows_read"]), percent(row["spread"]),
                    )
                    for row in rows
                ],
            )
        )  # fmt: skip
    if not figures:
        return None
    return Section(id="speed", title="How fast it runs", text=(_MODES,), figures=tuple(figures), tables=tuple(tables))


def samples(found: Findings) -> Section | None:
    """What the model writes."""
    told = [
        (mode, prompt, text)
        for demo in found.of("demo")
        for mode, texts in demo["texts"].items()
        for prompt, text in zip(demo.get("prompts", [""] * len(texts)), texts, strict=False)
    ]
    told += [(run.get("mode", ""), _prompt(run), run["text"]) for run in found.of("run")]
    if not told:
        return None
    modes: dict[tuple[str, str], list[str]] = {}
    for mode, prompt, text in told:
        modes.setdefault((prompt, text), []).append(mode)
    same = tuple((", ".join(dict.fromkeys(named)), prompt, text) for (prompt, text), named in modes.items())
    return Section(id="samples", title="What it writes", samples=same)


def _prompt(run: dict[str, Any]) -> str:
    """What a run was given, by its command."""
    words = shlex.split(run.get("command") or "")
    return next((after for word, after in pairwise(words) if word in ("-p", "--prompt") and after != "-"), "")


def checks(found: Findings) -> Section | None:
    """The lines of checks."""
    tables = []
    for check in found.of("check"):
        rows = [
            (
                line["what"],
                {"passed": "ok", "failed": "FAILED", "skipped": "not known"}[line["status"]],
                line["allowed"],
                line["problem"],
            )
            for line in check["lines"]
        ]
        tables.append(Table(head=(f"{check['name']}", "", "allowed", ""), rows=rows, words=True))
    return Section(id="checks", title="Thresholds", tables=tuple(tables)) if tables else None


def provenance(found: Findings) -> Section | None:
    """The commands, and what everything is bound to."""
    commands = [command for demo in found.of("demo") for command in demo.get("commands", ())]
    made = [
        record.figures.get("command") for record in [*found.outputs, *(r for rs in found.results.values() for r in rs)]
    ]
    commands += [command for command in made if command]
    sparse = found.sparse
    rows = [(found.name(record.path), record.kind, size_text(record.figures["size_bytes"])) for record in found.outputs]
    table = Table(head=("in this folder", "", "size"), rows=rows, words=True)
    text = []
    if sparse is not None and sparse.figures.get("source_fingerprint"):
        text.append(f"Fingerprint of the dense model: {sparse.figures['source_fingerprint']}.")
    return Section(
        id="commands", title="How it was made", text=tuple(text), tables=(table,),
        commands=tuple(dict.fromkeys(commands)),
    )  # fmt: skip
