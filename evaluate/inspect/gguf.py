"""`tsconvert inspect` of GGUF files: models of any engine, and importance matrices."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import TsconvertError
from ...common.units import size_text
from ...model.files.gguf.file import GgufFile
from ...model.tensor_names import GGUF_NAMES
from ...quant.imatrix.file import is_imatrix, load_imatrix
from ...runner.files.model_file import ModelFile, open_model
from .summary import Inspection, Table, part_of, parts_table


def inspect_gguf(path: Path, tensors: bool) -> Inspection:
    """Say what the GGUF file is; of a model in shards ``path`` is the first.

    Raises:
        TsconvertError: it is damaged, or none.
    """
    file = GgufFile(path)
    listed = list(file.tensors.values()) if tensors else []
    rows = [(tensor.name, tensor.type_name, list(tensor.shape), tensor.size_bytes) for tensor in listed]
    found = _imatrix(path) if is_imatrix(file) else _model(path, file)
    return replace(found, tensors=rows)


def _model(path: Path, file: GgufFile) -> Inspection:
    facts: dict[str, Any] = {
        "size": size_text(file.size_bytes) + (f" in {file.shards} shards" if file.shards > 1 else ""),
        "weights": f"{sum(math.prod(tensor.shape) for tensor in file.tensors.values()) / 1e6:,.1f}M",
        "tensors": len(file.tensors),
    }
    try:
        model = open_model(path)
        whole, state = True, f"every tensor that {model.dialect} needs of this shape is there"
        facts |= _shape(model)
    except TsconvertError as error:
        whole, state = False, str(error).removeprefix(f"{path}: ")
    if file.architecture and not whole and "the runner knows" in state:
        whole, state = True, f"all {len(file.tensors)} tensors lie within the file; its architecture is not known here"
    elif "the runner does not compute" in state:
        whole, state = True, f"all {len(file.tensors)} tensors lie within the file; {state}"
    facts |= {key: _short(value) for key, value in file.metadata.items()}
    kind = {"GGUF": "GGUF file", "PWRI": "PowerInfer GGUF file"}[file.magic]
    parts = [
        (_part(each.name), each.type_name, math.prod(each.shape), each.size_bytes) for each in file.tensors.values()
    ]
    return Inspection(
        path=str(path), kind=f"{kind}, {file.architecture or 'no architecture'}", whole=whole, state=state, facts=facts,
        tables=[parts_table(parts)],
    )  # fmt: skip


def _shape(model: ModelFile) -> dict[str, Any]:
    """The model's shape and sparsity, whatever keys its dialect has for them."""
    spec = model.spec
    thresholds = [float(value) for value in model.thresholds.ravel() if math.isfinite(value)]
    ffns = spec.layers * spec.ffns
    modes = ["dense"] + ["exact"] * (spec.sparse and model.transposed) + ["predicted"] * model.approximates
    spread = f", thresholds {min(thresholds):.3g} to {max(thresholds):.3g}" if thresholds else ""
    return {
        "activation": spec.activation,
        "layers": spec.layers,
        "width": spec.width,
        "neurons": f"{spec.neurons}" + (f" in each of {spec.experts} experts" if spec.experts else ""),
        "predictors": f"{len(thresholds)} of {ffns} FFNs, rank {model.rank}{spread}" if thresholds else None,
        "modes": ", ".join(modes),
    }


def _imatrix(path: Path) -> Inspection:
    matrix = load_imatrix(path)
    missed = {name: entry.missed for name, entry in matrix.entries.items() if entry.missed}
    rows = []
    for name, entry in matrix.entries.items():
        weights_EC = entry.importance()
        spread = float(weights_EC.max() / max(float(weights_EC.mean()), 1e-30))
        rows.append([name, *weights_EC.shape, int(entry.counts_E.sum(dtype=np.float64)), f"{spread:.1f}"])
    facts = {
        "of model": matrix.model_fingerprint,
        "size": size_text(path.stat().st_size),
        "matrices": len(matrix.entries),
        "text": ", ".join(matrix.datasets),
        "tokens": f"{matrix.chunks * matrix.chunk_tokens:,} in sequences of {matrix.chunk_tokens}",
    }
    names = ", ".join(f"{name} {experts}" for name, experts in list(missed.items())[:3])
    state = f"experts that no token reached: {names}" if missed else "every matrix was reached by some token"
    header = ["matrix", "experts", "columns", "tokens", "largest / mean weight"]
    return Inspection(
        path=str(path), kind="importance matrix", whole=not missed, state=state, facts=facts,
        tables=[Table(title="entries", header=header, rows=rows)],
    )  # fmt: skip


_ROLES = {name.split(".")[-2].removesuffix("{X}"): role for role, name in GGUF_NAMES.items()}


def _part(name: str) -> str:
    """The part of the model that a GGUF tensor's name belongs to."""
    word = name.removesuffix(".weight").split(".")[-1].removesuffix("_exps")
    role = _ROLES.get(word) or _ROLES.get(word.removesuffix("_t"))
    return part_of(role) if role else "other"


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(str(item)[:20] for item in value[:4])
        return f"[{head}{', ...' if len(value) > 4 else ''}] ({len(value)})"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 80 else f"{text[:77]}..."
