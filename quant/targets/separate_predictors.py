"""Predictors in a second GGUF file, for engines that refuse tensors which they do not know in the first.

The first file names it; both hold the fingerprint of the checkpoint that they were made from.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.errors import TsconvertError
from ...model.files.gguf.file import SPARSE, GgufFile
from ..gguf.shards import GgufPlan
from ..gguf.values import text

if TYPE_CHECKING:
    from .plan import Plan

SUFFIX = ".predictors.gguf"
ARCHITECTURE = f"{SPARSE}-predictors"
_PREDICTOR = re.compile(r"(^|\.)fc[12](_exps)?\.[^.]*$")
_LONGEST_NAME = 200  # characters of a file's
_KEYS = ("format_version", "source_fingerprint", "predictor.threshold", "predictor.rank")


def split_off(plan: "Plan", out: Path) -> "Plan":
    """The plan of the file ``out`` with the predictors in a file of their own.

    Raises:
        TsconvertError: there are none, or the target keeps them in the file.
    """
    inside = [tensor for tensor in plan.tensors if is_predictor(tensor.name)]
    if plan.target != "sparse" or not inside:
        raise TsconvertError(
            "--separate-predictors: there are no predictors that could go into a file of their own; give --predictors"
            " and --target sparse"
        )
    prefix, metadata = f"{plan.architecture}.", dict(plan.metadata)
    keys = {"general.architecture": text(ARCHITECTURE), "general.name": metadata["general.name"]}
    keys |= {f"{prefix}{name}": metadata[f"{prefix}{name}"] for name in _KEYS}
    for name in ("predictor.threshold", "predictor.rank"):
        del metadata[prefix + name]
    beside = GgufPlan(path=out.with_name(out.name + SUFFIX), metadata=keys, tensors=inside)
    metadata[f"{prefix}predictor.file"] = text(beside.path.name)
    rest = [tensor for tensor in plan.tensors if not is_predictor(tensor.name)]
    return replace(plan, metadata=metadata, tensors=rest, companions=[*plan.companions, beside])


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
