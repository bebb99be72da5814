"""What a finished output says of itself: the records that the stages leave in their files and folders."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import read_json_object
from ...model.checkpoint import Checkpoint
from ...model.files.gguf.file import GgufFile, is_gguf
from ...model.files.provenance import read_provenance
from ...predictors.profile import file as profile_file
from ...quant.imatrix.file import is_imatrix
from .reference_logits import FORMAT as LOGITS_FORMAT
from .reference_logits import read_about, read_metadata


@dataclass(frozen=True, kw_only=True)
class Record:
    """One output."""

    path: Path
    kind: str
    """`checkpoint`, `predictors`, `profile`, `logits`, `imatrix`, `gguf` or `json`."""
    figures: dict[str, Any]
    """What the stage that made it found, and `size_bytes`."""


def read_record(path: Path) -> Record:
    """The record of one output.

    Raises:
        TsconvertError: there is nothing, or nothing that tsconvert made or reads.
    """
    if not path.exists():
        raise TsconvertError(f"{path}: is not there; run the stage that makes it first")
    for kind, is_it, read in _KINDS:
        if is_it(path):
            return Record(path=path, kind=kind, figures=read(path))
    raise TsconvertError(f"{path}: is none of these: checkpoint, predictors, profile, GGUF file, JSON report; give one")


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _predictors(path: Path) -> dict[str, Any]:
    config = _config(path)
    head = {key: config.get(key) for key in ("model_fingerprint", "thresholds", "command")}
    report = config.get("report", {})
    return {**head, **(report if isinstance(report, dict) else {}), "size_bytes": size_of(path)}


def _checkpoint(path: Path) -> dict[str, Any]:
    found = Checkpoint(path)
    record: dict[str, Any] = {"parameters": found.spec.parameters, "spec": asdict(found.spec)}
    if (made := read_provenance(path)) is not None:
        record |= {"settings": made.settings, "command": made.command, **made.report}
    return record | {"size_bytes": found.size_bytes}


def _format_of(path: Path) -> str:
    """The format that a safetensors file of tsconvert's says it has."""
    try:
        return str(read_metadata(path).get("format", "")) if path.suffix == ".safetensors" else ""
    except TsconvertError:
        return profile_file.FORMAT  # whose reader says what is wrong with the file


def _gguf(path: Path) -> dict[str, Any]:
    file = GgufFile(path)
    types: dict[str, int] = {}
    for tensor in file.tensors.values():
        types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.size_bytes
    made = path.with_name(path.name + ".json")
    export = _json(made) if made.is_file() else {}
    return {
        **export, "architecture": file.architecture, "magic": file.magic, "size_bytes": file.size_bytes,
        "tensor_count": len(file.tensors), "types": types,
        "weights": sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
        "metadata": {key: value for key, value in file.metadata.items() if not isinstance(value, list)},
    }  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, "write it again with --json")


def _is_imatrix(path: Path) -> bool:
    return is_gguf(path) and path.name.endswith(".gguf") and is_imatrix(GgufFile(path))


# kind, whether a path is of that kind, and its figures
_KINDS: tuple[tuple[str, Callable[[Path], bool], Callable[[Path], dict[str, Any]]], ...] = (
    ("predictors", lambda path: path.is_dir() and _config(path).get("format") == "tsconvert predictors", _predictors),
    ("checkpoint", lambda path: path.is_dir() and "model_type" in _config(path), _checkpoint),
    ("imatrix", _is_imatrix, _gguf),
    ("gguf", is_gguf, _gguf),
    (
        "profile", lambda path: _format_of(path) == profile_file.FORMAT,
        lambda path: profile_file.load_profile(path).to_json() | {"size_bytes": size_of(path)},
    ),
    (
        "logits", lambda path: _format_of(path) == LOGITS_FORMAT,
        lambda path: read_about(path) | {"size_bytes": size_of(path)},
    ),
    ("json", lambda path: path.suffix == ".json", _json),
)  # fmt: skip
