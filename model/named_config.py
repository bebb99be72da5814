"""The config.json that a user names, without the weights: a file, a folder, an embedded model or a hub id."""

from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..common.files import read_json_object
from .files.gguf.config import config_of
from .files.gguf.file import GgufFile, is_gguf
from .files.locate import find_model
from .spec import ModelSpec, read_config, spec_of


def read_model_config(model: str) -> tuple[dict[str, Any], ModelSpec]:
    """The content of a config.json, and the spec that it describes; of what ``model`` names.

    Raises:
        TsconvertError: there is none, or it describes no model that tsconvert converts.
    """
    path = Path(model)
    if is_gguf(path):
        content = config_of(GgufFile(path))
        return content, spec_of(content, path)
    if path.is_file():
        content = read_json_object(path, "give a model's config.json")
        return content, spec_of(content, path)
    folder = path if path.is_dir() or "/" not in model else _hub_config(model)
    if not folder.is_dir():
        folder = find_model(model)
    content = read_config(folder)
    return content, spec_of(content, folder / "config.json")


def _hub_config(model: str) -> Path:
    """The folder of a hub model's config.json, which alone is fetched."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(model, "config.json")).parent
    except Exception as error:
        raise TsconvertError(
            f"{model}: no such file, and the hub gave no such model ({type(error).__name__}); look at the name and"
            " the network, and log in (hf auth login) where a model is gated"
        ) from error
