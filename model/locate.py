"""Find the model that a user names: a folder, an embedded model, or a repository of the hub."""

import re
from pathlib import Path

from .. import embedded
from ..common.errors import TsconvertError


def find_model(model: str | Path) -> Path:
    """The folder behind a path, an embedded model's name or a hub id."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) in embedded.NAMES:
        return embedded.folder(str(model))
    if folder.exists():
        raise TsconvertError(f"{model}: a file; give the folder that holds config.json")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        known = ", ".join(embedded.NAMES)
        raise TsconvertError(
            f"{model}: no such folder; give a checkpoint folder, a hub id (name/model) or one of {known}"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(model), allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]
            )
        )
    except Exception as error:
        raise TsconvertError(
            f"{model}: no such folder, and the hub gave no such model ({type(error).__name__}); look at the name and"
            " the network, and log in (hf auth login) where a model is gated"
        ) from error
