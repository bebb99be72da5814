"""The report's sections on what commands printed: speed, texts, thresholds; and the commands themselves."""

import shlex
from itertools import pairwise
from typing import Any

from ...common.units import size_text
from .elements import Figure, Section, Table
from .findings import Findings
from .plots import horizontal_bars
from .svg import percent

_MODES = (
    "Dense mode computes every neuron; exact mode computes up and down only where the gate is positive, with the same"
    " result; predicted mode computes what the predictors name."
)


def speed(found: Findings) -> Section | None:
    """Tokens per second of each mode, of each file that was measured."""
    figures, tables = [], []
    for bench in found.of("bench"):
        bars, rows = [], []
        dense = next((row["tokens_per_s"] for row in bench["rows"] if row["mode"] == "dense"), None)
        for row in bench["rows"]:
            rate, prompt_rate = row["tokens_per_s"], row["prompt_tokens_per_s"]
            bars.append((row["mode"], rate, f"{rate:,.1f}" + (f" · {rate / dense:.2f} ×" if dense else "")))
            read, spread = percent(row["density"]["rows_read"]), percent(row["spread"])
            rows.append([row["mode"], f"{rate:,.1f}", f"{prompt_rate:,.1f}", read, spread])
        figures.append(
            Figure(
                title=f"{found.name(bench['file'])}: tokens per second",
                note=f"Generation of {bench['generate']} tokens on {bench['threads']} threads, median of"
                f" {bench['repetitions']}.",
                svg=horizontal_bars("tokens per second of each mode", bars),
                wide=True,
            )
        )
        head = ("mode", "generation, tokens/s", "prompt, tokens/s", "rows of the FFN read", "spread")
        tables.append(Table(head=head, rows=rows))
    if not figures:
        return None
    return Section(id="speed", title="How fast it runs", text=(_MODES,), figures=tuple(figures), tables=tuple(tables))


def samples(found: Findings) -> Section | None:
    """What the model writes; modes that write the same stand together."""
    modes: dict[tuple[str, str], list[str]] = {}
    for demo in found.of("demo"):
        for mode, texts in demo["texts"].items():
            for prompt, text in zip(demo.get("prompts", [""] * len(texts)), texts, strict=False):
                modes.setdefault((prompt, text), []).append(mode)
    for run in found.of("run"):
        modes.setdefault((_prompt(run), run["text"]), []).append(run.get("mode", ""))
    texts = tuple((", ".join(dict.fromkeys(named)), prompt, text) for (prompt, text), named in modes.items())
    return Section(id="samples", title="What it writes", samples=texts) if texts else None


def _prompt(run: dict[str, Any]) -> str:
    """What a run was given, by its command."""
    words = shlex.split(run.get("command") or "")
    return next((after for word, after in pairwise(words) if word in ("-p", "--prompt") and after != "-"), "")


def checks(found: Findings) -> Section | None:
    """The lines of checks."""
    words = {"passed": "ok", "failed": "FAILED", "skipped": "not known"}
    tables = []
    for check in found.of("check"):
        rows = [[line["what"], words[line["status"]], line["allowed"], line["problem"]] for line in check["lines"]]
        tables.append(Table(head=(check["name"], "", "allowed", ""), rows=rows, words=True))
    return Section(id="checks", title="Thresholds", tables=tuple(tables)) if tables else None


def provenance(found: Findings) -> Section | None:
    """The commands, and what everything is bound to."""
    commands = [command for demo in found.of("demo") for command in demo.get("commands", ())]
    records = [*found.outputs, *(record for records in found.results.values() for record in records)]
    commands += [command for record in records if (command := record.figures.get("command"))]
    rows = [(found.name(record.path), record.kind, size_text(record.figures["size_bytes"])) for record in found.outputs]
    fingerprint = found.sparse.figures.get("source_fingerprint") if found.sparse else None
    return Section(
        id="commands", title="How it was made",
        text=(f"Fingerprint of the dense model: {fingerprint}.",) if fingerprint else (),
        tables=(Table(head=("in this folder", "", "size"), rows=rows, words=True),),
        commands=tuple(dict.fromkeys(commands)),
    )  # fmt: skip
