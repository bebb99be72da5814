"""Predictors in a second GGUF file, for engines that refuse tensors which they do not know in the first.

The first file names it; both hold the fingerprint of the checkpoint that they were made from.
"""

import re
from pathlib import Path

from ...common.errors import TsconvertError
from ..gguf.file import GgufFile
from ..gguf.shards import GgufPlan
from ..gguf.tensor_plan import TensorPlan
from ..gguf.values import Value, text

SUFFIX = ".predictors.gguf"
ARCHITECTURE = "turbosparse-predictors"
_PREDICTOR = re.compile(r"(^|\.)fc[12](_exps)?\.[^.]*$")
_LONGEST_NAME = 200  # characters of a file's
_KEYS = ("format_version", "source_fingerprint", "predictor.threshold", "predictor.rank")


def split_off(
    metadata: dict[str, Value], tensors: list[TensorPlan], architecture: str, out: Path
) -> tuple[dict[str, Value], list[TensorPlan], GgufPlan]:
    """A file's keys and tensors without the predictors, and the second file that holds them.

    Args:
        out: the first file.
    """
    inside = [tensor for tensor in tensors if is_predictor(tensor.name)]
    rest = [tensor for tensor in tensors if not is_predictor(tensor.name)]
    prefix = f"{architecture}."
    moved = {f"{prefix}{name}": metadata[f"{prefix}{name}"] for name in _KEYS}
    keys = {"general.architecture": text(ARCHITECTURE), "general.name": metadata["general.name"]} | moved
    beside = out.with_name(out.name + SUFFIX)
    first = dict(metadata)
    for name in ("predictor.threshold", "predictor.rank"):
        del first[prefix + name]
    first[f"{prefix}predictor.file"] = text(beside.name)
    return first, rest, GgufPlan(path=beside, metadata=keys, tensors=inside)


def find_separate(file: GgufFile) -> GgufFile | None:
    """The file with the predictors of ``file``, or None if it names none, or it is not there.

    Raises:
        TsconvertError: it is damaged, or belongs to another model.
    """
    name = file.metadata.get(f"{file.architecture}.predictor.file")
    if not isinstance(name, str):
        return None
    path = file.path.parent / Path(name).name  # no other folder, whatever the key says
    if len(name) > _LONGEST_NAME or not path.is_file():
        return None
    found = GgufFile(path)
    key = f"{file.architecture}.source_fingerprint"
    if found.architecture != ARCHITECTURE or found.metadata.get(key) != file.metadata.get(key):
        raise TsconvertError(f"{path}: holds no predictors of {file.path}; export both again")
    return found


def is_predictor(name: str) -> bool:
    """Whether a tensor of this name belongs to a predictor."""
    return _PREDICTOR.search(name) is not None
