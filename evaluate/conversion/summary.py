"""What a conversion's stages found, in a few tables for a terminal; the page and the card have it all."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...common.tables import table
from ...common.units import size_text
from ..records.eval_report import mean
from ..report.measurements import IN_CACHE_BYTES

Results = Mapping[str, Mapping[str, Any]]


def summary(model: str, results: Results) -> str:
    """All of it as text."""
    parts = [*_texts(model, results), *_perplexities(results), *_tasks(results), *_layers(results), *_files(results)]
    return "\n\n".join([*parts, *_speeds(results), *_shapes(results)])


def scores(results: Results) -> dict[str, Mapping[str, Any]]:
    """The stages that measured perplexity on held-out text, by name."""
    return {name: found for name, found in results.items() if "perplexity" in found and "counted" in found}


def dense_score(results: Results) -> float | None:
    """The dense model's perplexity on the text that most stages were scored on."""
    known = (found.get("against_perplexity") for found in scores(results).values())
    return next((float(value) for value in known if value), None)


def _texts(model: str, results: Results) -> Iterator[str]:
    lines = []
    for found in results.values():
        if "text" in found and isinstance(found.get("tokens"), list):
            said = str(found["text"]).replace("\n", " ")
            lines.append(f"  {found.get('mode', ''):<10} {prompt_of(found)} |{said}")
    if lines:
        yield "\n".join([f"{model}, what each mode writes:", *lines])


def prompt_of(found: Mapping[str, Any]) -> str:
    """What a `run` was given, by its command."""
    import shlex

    words = shlex.split(str(found.get("command") or ""))
    return next((after for word, after in pairwise(words) if word in ("-p", "--prompt")), "")


def _perplexities(results: Results) -> Iterator[str]:
    dense = dense_score(results)
    rows = []
    for name, found in scores(results).items():
        value = float(found["perplexity"])
        where = f"{Path(str(found['model'])).name}" + (f", {found['mode']}" if found["mode"] != "checkpoint" else "")
        error = found.get("perplexity_ratio_error")
        ratio = f"{value / dense:,.3f}" + (f" ± {error:.3f}" if error else "") if dense else ""
        fires = f"{found['mean_density']:.1%}" if found.get("mean_density") else ""
        rows.append([name, where, f"{value:,.2f}", ratio, fires])
    if rows:
        yield table(["held-out text", "", "perplexity", "x dense", "neurons that fire"], rows)


def _tasks(results: Results) -> Iterator[str]:
    for found in results.values():
        rows = [
            [measure["name"], f"{beside['value']:.1%}", f"{measure['value']:.1%}",
             f"{100 * beside['difference']:+.1f} ± {100 * beside['difference_error']:.1f}"]
            for measure in found.get("measures", ())
            for beside in measure["baselines"]
            if beside.get("difference") is not None
        ]  # fmt: skip
        if rows:
            yield table(["questions", "dense", "sparse", "points"], rows)


def _layers(results: Results) -> Iterator[str]:
    found = next((each for each in reversed(scores(results).values()) if each.get("predicted_density")), None)
    if found is not None:
        columns = [found["density"], found["predicted_density"], found["recall"]]
        rows = [[str(i), *(f"{value:.1%}" for value in row)] for i, row in enumerate(zip(*columns, strict=True))]
        shown = rows if len(rows) <= 8 else []
        yield table(["layer", "fires", "predicted", "recall"], [*shown, ["mean", *(f"{mean(c):.1%}" for c in columns)]])


def _files(results: Results) -> Iterator[str]:
    rows = [
        [Path(str(found["out"])).name, size_text(found["size_bytes"])]
        for found in results.values()
        if "architecture" in found and "out" in found
    ]
    if rows:
        yield table(["file", "size"], rows)


def _speeds(results: Results) -> Iterator[str]:
    for found in results.values():
        if "rows" in found and "repetitions" in found and "file" in found:
            lines = [[row["mode"], f"{row['tokens_per_s']:,.1f}"] for row in found["rows"]]
            small = too_small(found["size_bytes"])
            yield table([Path(str(found["file"])).name, "tokens/s"], lines) + (f"\n{small}" if small else "")


def too_small(size_bytes: int) -> str:
    """Why the speeds of a file say nothing about larger ones; empty where they do."""
    if size_bytes > IN_CACHE_BYTES:
        return ""
    return f"({size_text(size_bytes)} lie in the processor's cache: too small a model to gain from sparsity.)"


def _shapes(results: Results) -> Iterator[str]:
    for found in results.values():
        if "layers_measured" not in found:
            continue
        dense = next(row["tokens_per_s"] for row in found["rows"] if row["mode"] == "dense")
        rows = [[row["mode"], f"{row['tokens_per_s']:,.2f}", f"{row['tokens_per_s'] / dense:.2f}"]
                for row in found["rows"]]  # fmt: skip
        if found.get("llama_cpp"):
            speed = found["llama_cpp"]["tokens_per_s"]
            rows.append([f"llama.cpp ({found['llama_cpp']['program']})", f"{speed:,.2f}", f"{speed / dense:.2f}"])
        yield table([shape_title(found), "tokens/s", "x dense"], rows)


def shape_title(found: Mapping[str, Any]) -> str:
    """What was measured on planted layers."""
    shape = found["shape"]
    return (
        f"{shape['layers']} layers of {shape['width']} x {shape['neurons']}, {shape['type_name']};"
        f" {shape['firing']:.1%} fire, {shape['predicted']:.1%} are predicted"
    )
