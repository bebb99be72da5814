"""Where each tensor of a checkpoint lies in the GGUF file that llama.cpp's converter made of it."""

from pathlib import Path

import numpy as np

from ..common.errors import TsconvertError, label
from .families import FAMILIES
from .files.found_files import gguf_source
from .files.gguf import ggml
from .files.gguf.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from .files.gguf.file import GgufFile, GgufTensor
from .files.gguf.tensor import GgufTensorInfo, Index, rope_order, stored_dtype
from .find_tensors import Found
from .spec import ModelSpec, read_config, spec_of
from .tensor_names import Place, gguf_name, model_places, shape_of

_ROTATED = {f"{role}{end}" for role in ("attn_q", "attn_k") for end in ("", "_bias")}
_ROPE = {ROPE_FREQS, ROPE_LONG, ROPE_SHORT}
"""Tensors that the configuration was made of."""


def find_gguf_tensors(folder: Path) -> Found:
    """The tensors of the GGUF file that ``folder`` (files/gguf/folder.py) stands for.

    Raises:
        TsconvertError: a tensor is missing, of another shape than the keys say, of a type that cannot be decoded, or is
            not one of such a model's.
    """
    path = gguf_source(folder)
    assert path is not None
    file, config = GgufFile(path), read_config(folder)
    found = Found(config, spec_of(config, path))
    used = set(_ROPE)
    for place in model_places(found.spec):
        name, first, rows = _rows_of(found.spec, place)
        used.add(name)
        if name in file.tensors:
            found.infos[place] = _info(file, file.tensors[name], found.spec, place, first, rows)
        elif place.role.endswith("_bias"):
            found.infos[place] = _zeros(file, found.spec, place)
        else:
            raise TsconvertError(f"{path}: tensor {name} is missing; download the file again")
    others = [name for name in file.tensors if name not in used]
    if others:
        raise TsconvertError(
            f"{path}: tensor {label(others[0])} has no place in a {found.spec.family} model; give the Hugging Face"
            " folder that the file was made of"
        )
    return found


def _rows_of(spec: ModelSpec, place: Place) -> tuple[str, int, int]:
    """The tensor that holds the rows of a place: its name, the first of them, and how many it has in all."""
    gguf, rows = FAMILIES[spec.family].gguf, _rows(spec, place)
    for name, roles in gguf.fused.items():
        if place.role in roles:
            counts = [_rows(spec, Place(role, place.layer)) for role in roles]
            return name.format(L=place.layer), sum(counts[: roles.index(place.role)]), sum(counts)
    name = gguf.names[place.role].format(L=place.layer) if place.role in gguf.names else gguf_name(place)
    experts = spec.experts if place.expert is not None else 1
    return name, rows * (place.expert or 0), rows * experts


def _rows(spec: ModelSpec, place: Place) -> int:
    return int(np.prod(shape_of(spec, place)[:-1], dtype=np.int64))


def _info(file: GgufFile, tensor: GgufTensor, spec: ModelSpec, place: Place, first: int, rows: int) -> GgufTensorInfo:
    shape = shape_of(spec, place)
    whole: tuple[int, ...] = shape if len(shape) == 1 else (rows, shape[1])
    if place.expert is not None:
        whole = (spec.experts, *shape)
    if tensor.shape != whole:
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} has shape {list(tensor.shape)} where the keys make it {list(whole)};"
            " download the file again"
        )
    if tensor.type_name != "F32" and not ggml.row_functions(tensor.type_name).to_float:
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} is {tensor.type_name}, no type of weights; get the file in another type"
        )
    raw_RB = tensor.raw.reshape(rows, -1)[first : first + _rows(spec, place)]
    offset = -spec.norm_offset if place.role.endswith("norm") else 0.0
    dtype = "F32" if offset else stored_dtype(tensor.type_name)
    return GgufTensorInfo(
        name=tensor.name, file=tensor.file, dtype=dtype, shape=shape,
        start=tensor.offset + first * raw_RB.shape[-1], size_bytes=int(np.prod(shape)) * ggml.TYPES[dtype].size_bytes,
        type_name=tensor.type_name, raw_RB=raw_RB, order_R=_order(spec, place.role), offset=offset,
    )  # fmt: skip


def _zeros(file: GgufFile, spec: ModelSpec, place: Place) -> GgufTensorInfo:
    """A bias that the file leaves out, and the checkpoint has along with those that are there."""
    shape = shape_of(spec, place)
    return GgufTensorInfo(
        name=_rows_of(spec, place)[0], file=file.path, dtype="F32", shape=shape, start=0, size_bytes=4 * shape[0],
        type_name="F32", raw_RB=np.zeros((1, 4 * shape[0]), np.uint8), offset=0.0, order_R=np.arange(shape[0]),
    )  # fmt: skip


def _order(spec: ModelSpec, role: str) -> Index | None:
    """The order of rows of q and k where pairs that turn are neighbours in the file, and apart in the checkpoint."""
    family = FAMILIES[spec.family]
    if role not in _ROTATED or family.gguf.pairs != "adjacent" or family.adjacent_pairs:
        return None
    heads = spec.heads if role.startswith("attn_q") else spec.kv_heads
    return rope_order(heads, spec.head_dim, spec.rope_dim or spec.head_dim)
