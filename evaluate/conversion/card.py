"""The model card of a converted folder, complete for the hub: what it is, what it was measured at, how it was made."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...common.files import atomic_file
from ...model.checkpoint import Checkpoint
from ...quant.metadata.model_card import front_matter
from ...quant.metadata.provenance import read_info
from .plan import SPARSE
from .summary import Results, dense_score, scores, shape_title, too_small

_BEGIN = "<!-- measured by tsconvert convert -->"


def write_card(out: Path, model: str, results: Results) -> None:
    """Write what was measured into README.md of the converted folder, behind what relufy says there of its recipe."""
    folder = out / SPARSE
    if not (folder / "config.json").is_file():
        return
    file = folder / "README.md"
    recipe = file.read_text(encoding="utf-8") if file.is_file() else ""
    recipe = recipe.partition(_BEGIN)[0].partition("---\n\n")[2] if recipe.startswith("---\n") else recipe
    info = read_info(Checkpoint(folder), {})
    head = ["---", "library_name: transformers", *front_matter(info, tags=("sparse",)), "---", ""]
    title = "" if recipe.startswith("# ") else f"# {Path(model).name}, sparse\n"
    lines = [*head, f"{title}{recipe.rstrip()}".lstrip("\n"), "", _BEGIN, *_lines(folder, model, results)]
    with atomic_file(file) as stream:
        stream.write(("\n".join(lines).rstrip() + "\n").encode())


def _lines(folder: Path, model: str, results: Results) -> Iterator[str]:
    yield from ("", "## Measured after the conversion", "", "On text kept from training, beside the dense model:", "")
    dense = dense_score(results)
    yield "| | perplexity | times dense | neurons that fire |\n|---|---|---|---|"
    for name, found in scores(results).items():
        value = float(found["perplexity"])
        fires = f"{found['mean_density']:.1%}" if found.get("mean_density") else ""
        yield f"| {name} | {value:,.2f} | {f'{value / dense:.3f}' if dense else ''} | {fires} |"
    yield from _tasks(results)
    yield from _speeds(results)
    yield from ("", "## Commands", "")
    yield from (f"    {found['command']}" for found in results.values() if found.get("command"))
    yield from ("", "## Use", "", "    from transformers import AutoModelForCausalLM, AutoTokenizer")
    yield f'    model = AutoModelForCausalLM.from_pretrained("{folder.resolve().parent.name}", trust_remote_code=True)'
    files = [Path(str(found["out"])).name for found in results.values() if "architecture" in found and "out" in found]
    yield from (f"\nOn a CPU, sparsely: `tsconvert run {file} -p PROMPT`" for file in files)
    yield from ("", "## Limits", "")
    yield f"- It was recovered with little text beside what {model} was trained on: judge it on yours."
    yield "- transformers computes it densely; only tsconvert's runner, or PowerInfer with its own file, gain from it."
    yield f"- Converted by tsconvert {version('tsconvert')}; `recipe.toml` beside this folder repeats it."


def _tasks(results: Results) -> Iterator[str]:
    for found in results.values():
        for measure in found.get("measures", ()):
            for beside in measure["baselines"]:
                if beside.get("difference") is not None:
                    points = f"{100 * beside['difference']:+.1f} ± {100 * beside['difference_error']:.1f} points"
                    yield f"\n{measure['name']}: {measure['value']:.1%} right, dense {beside['value']:.1%} ({points})."


def _speeds(results: Results) -> Iterator[str]:
    for found in results.values():
        rows: list[dict[str, Any]] = found.get("rows", [])
        if rows and "repetitions" in found:
            speeds = ", ".join(f"{row['mode']} {row['tokens_per_s']:,.1f}" for row in rows)
            what = shape_title(found) if "shape" in found else Path(str(found["file"])).name
            small = too_small(found.get("size_bytes", 1 << 40))
            yield f"\nTokens/s on {found['threads']} threads, {what}: {speeds}. {small}".rstrip()
