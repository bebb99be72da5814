"""What a file or folder is that was given where another kind belongs, and which command takes it."""

import json
from pathlib import Path

_READ_BYTES = 1 << 20
_SAFETENSORS = {
    "tsconvert profile": "a profile: export-gguf --profile takes it",
    "tsconvert logits": "predictions of a model: eval --against takes it",
}


def kind_of(path: Path) -> str | None:
    """What is at ``path`` and who takes it, in words; None where that cannot be told."""
    try:
        return _folder(path) if path.is_dir() else _file(path) if path.is_file() else None
    except OSError:
        return None


def _folder(path: Path) -> str | None:
    config = _json(path / "config.json")
    if config.get("format") == "tsconvert predictors":
        return "a predictor folder: export-gguf --predictors takes it, with the model that it belongs to"
    if "model_type" in config:
        return "a checkpoint folder: relufy converts it, export-gguf makes a GGUF file of it"
    if (path / "adapter_config.json").is_file():
        return "a LoRA adapter: merge it into its base model (peft's merge_and_unload) and give that"
    return None


def _file(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        made = _SAFETENSORS.get(_format(path))
        return made or f"one file of a checkpoint: give its folder, {path.parent}"
    if path.suffix == ".dat":
        return "an importance matrix: export-gguf and quantize take it with --imatrix"
    if path.suffix in (".bin", ".pt", ".pth"):
        return "a pickle, which could run code and is not read: save the model as safetensors"
    if path.suffix == ".toml":
        return "no model: convert --recipe and check take recipes, --data takes mixtures"
    if path.suffix in (".txt", ".md", ".jsonl", ".parquet"):
        return "text: --data takes it"
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic in (b"ggla", b"lmgg", b"ggml", b"tjgg"):
        return "of a form that llama.cpp had before GGUF: get the model as GGUF or safetensors"
    return None


def gguf_kind(architecture: str, kind: str) -> str | None:
    """What a GGUF file is that is no language model, by ``general.architecture`` and ``general.type``."""
    if kind == "imatrix":
        return "an importance matrix: export-gguf and quantize take it as --imatrix"
    if kind == "adapter":
        return "a LoRA adapter: merge it (llama-export-lora) and give the model"
    if kind == "mmproj" or architecture == "clip":
        return "a model's eyes or ears: give the language model's file"
    if kind == "vocab":
        return "a vocabulary without weights: give the model's file"
    return None


def _json(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _format(path: Path) -> str:
    """The format that a safetensors file's metadata names."""
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > _READ_BYTES:
            return ""
        try:
            return str(json.loads(stream.read(size)).get("__metadata__", {}).get("format", ""))
        except (ValueError, AttributeError, RecursionError):
            return ""
