"""Where each tensor of a checkpoint lies in the GGUF file that was made of it."""

from pathlib import Path

import numpy as np

from ..common.errors import TsconvertError, label
from .files.gguf import ggml
from .files.gguf.config import ROPE_FREQS, architecture_of
from .files.gguf.file import GgufFile, GgufTensor
from .files.gguf.folder import source_of
from .files.gguf.tensor import GgufTensorInfo, Index, rope_order, stored_dtype
from .find_tensors import Found
from .spec import ModelSpec, read_config, spec_of
from .tensor_names import BIASED, Place, gguf_name, model_places, shape_of

_ROTATED = {f"{role}{end}" for role in ("attn_q", "attn_k") for end in ("", "_bias")}


def find_gguf_tensors(folder: Path) -> Found:
    """The tensors of the GGUF file that ``folder`` (files/gguf/folder.py) stands for.

    Raises:
        TsconvertError: a tensor is missing, of another shape than the keys say, of a type that cannot be decoded, or is
            not one of such a model's.
    """
    path = source_of(folder)
    assert path is not None
    file = GgufFile(path)
    config = read_config(folder)
    found = Found(config, spec_of(config, path))
    permuted, spec, used = architecture_of(file).permuted, found.spec, {ROPE_FREQS}
    for place in model_places(spec):
        name = gguf_name(place)
        tensor = file.tensors.get(name)
        if tensor is None and place.role.removesuffix("_bias") in BIASED and place.role.endswith("_bias"):
            found.infos[place] = _zeros(file, spec, place)
            continue
        if tensor is None:
            raise TsconvertError(f"{path}: tensor {name} is missing; download the file again")
        used.add(name)
        order = _order(spec, place.role) if permuted and place.role in _ROTATED else None
        found.infos[place] = _info(file, tensor, spec, place, order)
    others = [name for name in file.tensors if name not in used]
    if others:
        raise TsconvertError(
            f"{path}: tensor {label(others[0])} has no place in a {spec.family} model; give the Hugging Face folder"
            " that the file was made of"
        )
    return found


def _info(file: GgufFile, tensor: GgufTensor, spec: ModelSpec, place: Place, order: Index | None) -> GgufTensorInfo:
    shape = shape_of(spec, place)
    whole = shape if place.expert is None else (spec.experts, *shape)
    if tensor.shape != whole:
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} has shape {list(tensor.shape)} where the keys make it {list(whole)};"
            " download the file again"
        )
    if tensor.type_name != "F32" and not ggml.row_functions(tensor.type_name).to_float:
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} is {tensor.type_name}, no type of weights; get the file in another type"
        )
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    first = rows * (place.expert or 0)
    raw_RB = tensor.raw.reshape(rows * (spec.experts if place.expert is not None else 1), -1)[first : first + rows]
    offset = -spec.norm_offset if place.role.endswith("norm") else 0.0
    dtype = "F32" if offset else stored_dtype(tensor.type_name)
    return GgufTensorInfo(
        name=tensor.name, file=tensor.file, dtype=dtype, shape=shape,
        start=tensor.offset + first * raw_RB.shape[-1], size_bytes=int(np.prod(shape)) * ggml.TYPES[dtype].size_bytes,
        type_name=tensor.type_name, raw_RB=raw_RB, order_R=order, offset=offset,
    )  # fmt: skip


def _zeros(file: GgufFile, spec: ModelSpec, place: Place) -> GgufTensorInfo:
    """A bias that the file leaves out, and the checkpoint has with those that are there."""
    shape = shape_of(spec, place)
    raw_RB = np.zeros((1, 4 * shape[0]), np.uint8)
    return GgufTensorInfo(
        name=gguf_name(place), file=file.path, dtype="F32", shape=shape, start=0, size_bytes=4 * shape[0],
        type_name="F32", raw_RB=raw_RB,
    )  # fmt: skip


def _order(spec: ModelSpec, role: str) -> Index:
    heads = spec.heads if role.startswith("attn_q") else spec.kv_heads
    return rope_order(heads, spec.head_dim, spec.rope_dim or spec.head_dim)
