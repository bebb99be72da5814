"""What lies in a folder that is no checkpoint as tsconvert reads them, and what to do about it."""

import json
from pathlib import Path

from ...common.errors import TsconvertError, shown
from ...common.files import read_json_object

GGUF_SOURCE = "gguf_source.json"

_TO_SAFETENSORS = (
    "save it as safetensors first: transformers' AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
)


def no_config(folder: Path) -> TsconvertError:
    """The refusal of a folder without config.json."""
    found = _other_format(folder)
    if found is None:
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        found = f"folders with one are in it ({', '.join(inner[:3])}), give one of those" if inner else None
    return TsconvertError(f"{folder}: no config.json; {found or 'give a Hugging Face checkpoint folder or a hub id'}")


def no_weights(folder: Path, index: str) -> TsconvertError:
    """The refusal of a folder with neither model.safetensors nor its ``index``."""
    found = _other_format(folder)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    if found is None and shards:
        found = f"{shards[0]} is there, and the index says what is in it: copy {index} there as well"
    return TsconvertError(
        f"{folder}: no model.safetensors and no {index}; {found or 'the weights are missing, download them too'}"
    )


def gguf_source(folder: Path) -> Path | None:
    """The GGUF file whose weights are those of a folder (gguf/folder.py); None of any other folder."""
    source = folder / GGUF_SOURCE
    return Path(str(read_json_object(source)["file"])) if source.is_file() else None


def no_tokenizer(folder: Path) -> TsconvertError:
    """The refusal of a folder without a tokenizer that tsconvert reads."""
    file = gguf_source(folder)
    if file is not None:
        return TsconvertError(f"{file}: the file has no tokenizer; get one with the model's own")
    if own := sorted(path.name for path in folder.glob("tokenization_*.py")):
        found = f"{own[0]} is code of the folder's own, which is not run: copy a tokenizer.json of the same model there"
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        found = (
            "vocab.json and merges.txt do not say how text is split: make a tokenizer.json of them with transformers'"
            " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    else:
        found = "copy the model's own there"
    return TsconvertError(f"{folder}: no tokenizer (tokenizer.json, tokenizer.model or tekken.json); {found}")


def _other_format(folder: Path) -> str | None:
    """The weights that are there in another form, and what to do."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file() or (folder / "adapter_model.safetensors").is_file():
        base = _base_of(adapter)
        return (
            f"a LoRA adapter{f' of {base}' if base else ''} is there, not a model: merge it into its base model"
            " (peft's merge_and_unload), save that and give its folder"
        )
    names = {path.name for path in folder.iterdir()}
    consolidated = sorted(name for name in names if name.startswith("consolidated"))
    if consolidated:
        return (
            f"{consolidated[0]} is in its maker's own form, which names tensors otherwise: take the Hugging Face form"
            " (model.safetensors or model-00001-of-*.safetensors) of the same model"
        )
    for ending, advice in ((".bin", _TO_SAFETENSORS), (".pth", _TO_SAFETENSORS), (".pt", _TO_SAFETENSORS)):
        pickles = sorted(name for name in names if name.endswith(ending) and name != "training_args.bin")
        if pickles:
            return f"{pickles[0]} is there, a pickle, which could run code and is not read: {advice}"
    files = sorted(name for name in names if name.endswith(".gguf"))
    if files:
        return f"{files[0]} is a GGUF file: give that, not its folder"
    return None


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return shown(base).strip("'") if isinstance(base, str) else ""
