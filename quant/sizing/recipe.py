"""A recipe: the type of each matrix, and what it was chosen for; kept in the file, and read to repeat it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import read_json_object
from ...model.files.gguf import ggml
from ...model.files.gguf.file import GgufFile
from ..gguf.values import Value, text

KEY = "tsconvert.recipe"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The choice of types for a size."""

    asked: str
    """The option and its value."""
    types: Mapping[str, str]
    """Matrix -> its type."""
    losses: Mapping[str, Mapping[str, float]]
    """Matrix -> type that was tried -> KL in nats a token that it adds."""
    note: str = ""
    """For the user, where the size could not be met."""

    @property
    def divergence(self) -> float:
        """KL in nats a token that all matrices together are expected to add."""
        return sum(self.losses[name][type_name] for name, type_name in self.types.items() if name in self.losses)

    @property
    def common(self) -> str:
        """The type of most matrices' names: what the file is called in keys that have room for one."""
        types = list(self.types.values())
        return max(types, key=types.count)

    def keys(self) -> dict[str, Value]:
        """The key of the file."""
        if not self.losses:
            return {}
        found = {"asked": self.asked, "divergence": float(f"{self.divergence:.4g}"), "types": dict(self.types)}
        return {KEY: text(json.dumps(found, separators=(",", ":")))}

    def to_json(self) -> dict[str, Any]:
        """What was asked, and for each matrix its type and what each type that was tried would add."""
        tensors = {
            name: {"type": self.types[name], "divergence": tried[self.types[name]], "tried": dict(tried)}
            for name, tried in self.losses.items()
        }
        return {"asked": self.asked, "divergence": self.divergence, "tensors": tensors}


def read_recipe(path: Path) -> dict[str, str]:
    """Matrix -> type, of a GGUF file or of the JSON that export-gguf or quantize gave.

    Raises:
        TsconvertError: it is neither.
    """
    with path.open("rb") as stream:
        is_gguf = stream.read(4) == b"GGUF"
    if is_gguf:
        return {name: tensor.type_name for name, tensor in GgufFile(path).tensors.items()}
    found = read_json_object(path).get("tensors")
    if not isinstance(found, dict) or not all(kind in ggml.TYPES for kind in found.values()):
        raise TsconvertError(
            f"{path}: holds no types of tensors; give a GGUF file, the JSON that lies beside one, or the output of"
            " quantize --json"
        )
    return found
