"""The model card beside a GGUF file: what it is, what it was made from, and how to run it."""

from collections.abc import Sequence
from pathlib import Path

from ...common.units import size_text
from .provenance import ModelInfo

SUFFIX = ".md"
_RUN = {
    "llama.cpp": "llama-cli -m {file} -p PROMPT",
    "powerinfer": "main -m {file} -t THREADS -p PROMPT     # PowerInfer",
    "sparse": "tsconvert run {file} -p PROMPT",
}


def card_path(out: Path) -> Path:
    """Where the card of a file goes."""
    return out.with_name(out.name + SUFFIX)


def model_card(
    *, name: str, file: str, target: str, size_bytes: int, types: dict[str, int], info: ModelInfo, notes: Sequence[str]
) -> str:
    """The card as Markdown, with the front matter that the hub reads.

    Args:
        types: bytes of all tensors of a type.
        notes: what the user should know about the file.
    """
    lines = ["---", *front_matter(info), "---", "", f"# {name}", ""]
    if info.description:
        lines += [info.description, ""]
    made = ", ".join(base.name for base in info.base_models)
    lines += [f"A GGUF file for {target}" + (f", made from {made}" if made else "") + " by tsconvert.", ""]
    lines += [f"    {_RUN[target].format(file=file)}", "", "| | |", "|---|---|"]
    rows = {
        "size": size_text(size_bytes),
        "types": ", ".join(f"{kind} {size_text(size)}" for kind, size in types.items()),
        "checkpoint (BLAKE3)": f"`{info.fingerprint}`",
        **{f"recovery: {key}": _shown(value) for key, value in info.recovery.items()},
        **{f"predictors: {key}": _shown(value) for key, value in info.predictors.items()},
    }
    lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in rows.items()]
    lines += ["", *(f"- {note}" for note in notes)]
    return "\n".join(lines).rstrip() + "\n"


def front_matter(info: ModelInfo, tags: Sequence[str] = ("gguf",)) -> list[str]:
    """What the hub reads at the head of a card: licence, base model, languages, data sets, and ``tags`` first."""
    lines = [f"license: {_quoted(info.license)}"] if info.license else []
    for key, value in (("license_name", info.license_name), ("license_link", info.license_link)):
        lines += [f"{key}: {_quoted(value)}"] if value else []
    bases = [base.repo_url.removeprefix("https://huggingface.co/") or base.name for base in info.base_models]
    for key, values in (
        ("base_model", bases), ("language", info.languages), ("datasets", info.datasets),
        ("tags", tuple(dict.fromkeys((*tags, *info.tags)))),
    ):  # fmt: skip
        lines += [f"{key}:", *(f"- {_quoted(value)}" for value in values)] if values else []
    return lines


def _quoted(value: str) -> str:
    """A YAML string that can hold anything."""
    import json

    return value if value.replace("-", "").replace("_", "").replace(".", "").isalnum() else json.dumps(value)


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"`{value}`" if isinstance(value, str) else str(value)
