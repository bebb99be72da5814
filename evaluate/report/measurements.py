"""The report's sections on what commands printed: speed, texts, thresholds; and the commands themselves."""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ...common.units import size_text
from .elements import Command, Element, Figure, Sample, Table
from .findings import Findings
from .plots import horizontal_bars, percent

IN_CACHE_BYTES = 64_000_000
"""A file of at most so much lies in a processor's cache or nearly: sparsity has nothing to save there."""
_SMALL = "This file is so small that it lies in the processor's cache: such a model has nothing to gain from sparsity."
_MODES = (
    "Dense mode computes every neuron; exact mode goes on only with neurons that may still fire once their gates are"
    " known (their ups, where SwiGLU stayed), with the same result; predicted mode computes what the predictors name."
)


def speed(found: Findings) -> Iterator[Element]:
    """Tokens per second of each mode, of each file that was measured."""
    yield _MODES
    for bench in found.of("bench"):
        bars, rows = [], []
        dense = next((row["tokens_per_s"] for row in bench["rows"] if row["mode"] == "dense"), None)
        for row in bench["rows"]:
            rate, prompt_rate = row["tokens_per_s"], row["prompt_tokens_per_s"]
            bars.append((row["mode"], rate, f"{rate:,.1f}" + (f" · {rate / dense:.2f} ×" if dense else "")))
            read, spread = percent(row["density"]["rows_read"]), percent(row["spread"])
            rows.append([row["mode"], f"{rate:,.1f}", f"{prompt_rate:,.1f}", read, spread])
        yield Figure(
            title=f"{found.name(bench['file'])}: tokens per second",
            note=f"Generation of {bench['generate']} tokens on {bench['threads']} threads, median of"
            f" {bench['repetitions']}.",
            svg=horizontal_bars("tokens per second of each mode", bars),
            wide=True,
        )
        head = ("mode", "generation, tokens/s", "prompt, tokens/s", "rows of the FFN read", "spread")
        small = bench.get("size_bytes", IN_CACHE_BYTES + 1) <= IN_CACHE_BYTES
        yield Table(head=head, rows=rows, note=_SMALL if small else "")
    yield from _shapes(found)


def _shapes(found: Findings) -> Iterator[Element]:
    """What a sparse model of some shape would do on the machine that measured it."""
    for record in found.of("shape"):
        shape, dense = record["shape"], next(r["tokens_per_s"] for r in record["rows"] if r["mode"] == "dense")
        rates = [(row["mode"], row["tokens_per_s"]) for row in record["rows"]]
        if peer := record.get("llama_cpp"):
            rates.append((f"llama.cpp ({peer['program']})", peer["tokens_per_s"]))
        bars = [(mode, rate, f"{rate:,.1f} · {rate / dense:.2f} ×") for mode, rate in rates]
        title = f"{shape['layers']} layers of {shape['width']} × {shape['neurons']} in {shape['type_name']}"
        yield Figure(
            title=f"{title}: tokens per second",
            note=f"Measured here on planted layers of that shape, of which {percent(shape['firing'])} of the neurons"
            f" fire and {percent(shape['predicted'])} are predicted; {record['threads']} threads, median of"
            f" {record['repetitions']}.",
            svg=horizontal_bars(f"tokens per second of {title}", bars),
            wide=True,
        )


def samples(found: Findings) -> Iterator[Element]:
    """What the model writes; modes that write the same stand together."""
    modes: dict[tuple[str, str], list[str]] = {}
    for run in found.of("run"):
        modes.setdefault((_prompt(run), run["text"]), []).append(run.get("mode", ""))
    for (prompt, text), named in modes.items():
        yield Sample(", ".join(dict.fromkeys(named)), prompt, text)


def _prompt(run: dict[str, Any]) -> str:
    """What a run was given, by its command."""
    words = shlex.split(run.get("command") or "")
    return next((after for word, after in pairwise(words) if word in ("-p", "--prompt") and after != "-"), "")


def checks(found: Findings) -> Iterator[Element]:
    """The lines of checks."""
    words = {"passed": "ok", "failed": "FAILED", "skipped": "not known"}
    for check in found.of("check"):
        rows = [[line["what"], words[line["status"]], line["allowed"], line["problem"]] for line in check["lines"]]
        yield Table(head=(check["name"], "", "allowed", ""), rows=rows, words=True)


def provenance(found: Findings) -> Iterator[Element]:
    """The commands, and what everything is bound to."""
    commands: list[str] = []
    records = [*found.outputs, *(record for records in found.results.values() for record in records)]
    commands += [command for record in records if (command := record.figures.get("command"))]
    rows = [(found.name(record.path), record.kind, size_text(record.figures["size_bytes"])) for record in found.outputs]
    if found.sparse and (fingerprint := found.sparse.figures.get("source_fingerprint")):
        yield f"Fingerprint of the dense model: {fingerprint}."
    yield Table(head=("in this folder", "", "size"), rows=rows, words=True)
    yield from map(Command, dict.fromkeys(commands))
