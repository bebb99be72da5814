"""The report's sections on what commands printed: speed, texts, thresholds; and the commands themselves."""

import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from ...common.units import size_text
from .elements import Command, Element, Figure, Sample, Table
from .findings import Findings
from .plots import horizontal_bars, percent

_MODES = (
    "Dense mode computes every neuron; exact mode computes up and down only where the gate is positive, with the same"
    " result; predicted mode computes what the predictors name."
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
        yield Table(head=head, rows=rows)


def samples(found: Findings) -> Iterator[Element]:
    """What the model writes; modes that write the same stand together."""
    modes: dict[tuple[str, str], list[str]] = {}
    for demo in found.of("demo"):
        for mode, texts in demo["texts"].items():
            for prompt, text in zip(demo.get("prompts", [""] * len(texts)), texts, strict=False):
                modes.setdefault((prompt, text), []).append(mode)
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
    commands = [command for demo in found.of("demo") for command in demo.get("commands", ())]
    records = [*found.outputs, *(record for records in found.results.values() for record in records)]
    commands += [command for record in records if (command := record.figures.get("command"))]
    rows = [(found.name(record.path), record.kind, size_text(record.figures["size_bytes"])) for record in found.outputs]
    if found.sparse and (fingerprint := found.sparse.figures.get("source_fingerprint")):
        yield f"Fingerprint of the dense model: {fingerprint}."
    yield Table(head=("in this folder", "", "size"), rows=rows, words=True)
    yield from map(Command, dict.fromkeys(commands))
