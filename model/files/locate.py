"""Find the model that a user names: a folder, a GGUF file, an embedded model, or a repository of the hub."""

import re
from collections.abc import Callable
from pathlib import Path

from ... import embedded
from ...common.errors import TsconvertError
from .gguf.file import is_gguf
from .gguf.folder import folder_of
from .kinds import kind_of
from .safetensors_files import SINGLE, weight_map


def find_model(model: str | Path, check: Callable[[Path], object] | None = None) -> Path:
    """The folder behind a path, an embedded model's name or a hub id; of a GGUF file all but its weights.

    Args:
        check: called with the folder of a hub model when all but its weights is there; what it refuses is not fetched.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) in embedded.NAMES:
        return embedded.folder(str(model))
    if is_gguf(folder):
        return folder_of(folder)
    if folder.exists():
        found = kind_of(folder)
        raise TsconvertError(
            f"{model}: is {found}"
            if found
            else f"{model}: a file, and not GGUF; give that or the folder that holds config.json"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        known = ", ".join(embedded.NAMES)
        raise TsconvertError(
            f"{model}: no such folder or file; give a checkpoint folder, a GGUF file, a hub id (name/model) or one of"
            f" {known}"
        )
    try:
        return _download(str(model), check)
    except TsconvertError:
        raise
    except Exception as error:
        raise TsconvertError(
            f"{model}: no such folder, and the hub gave no such model ({type(error).__name__}); look at the name and"
            " the network, and log in (hf auth login) where a model is gated"
        ) from error


def _download(repository: str, check: Callable[[Path], object] | None) -> Path:
    """The folder of a repository's files that are read: of the weights model.safetensors, or what the index names."""
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.model", "*.jinja"]
    folder = Path(snapshot_download(repository, allow_patterns=small, ignore_patterns=["*/*"]))
    if check is not None:
        check(folder)
    snapshot_download(repository, revision=folder.name, allow_patterns=[SINGLE])
    if not (folder / SINGLE).is_file():
        shards = sorted(set(weight_map(folder).values()))
        if shards:
            snapshot_download(repository, revision=folder.name, allow_patterns=shards)
    return folder
