"""The tensors of a GGUF file that the runner computes with: found, checked, and no others left over."""

from collections.abc import Mapping
from dataclasses import replace

from ...common.errors import TsconvertError, label
from ...model.files.gguf import ggml
from ...model.files.gguf.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from ...model.files.gguf.file import SPARSE, GgufFile, GgufTensor
from ...model.files.gguf.keys import Keys
from ...model.spec import ModelSpec
from ...model.tensor_names import FFN, PREDICTOR, VECTORS, Place, gguf_name, layer_roles, shape_of
from .spec import Dialect, decoded

_OTHERS = {ROPE_FREQS: "", ROPE_LONG: "", ROPE_SHORT: "", "blk.{L}.ffn_order": SPARSE}
"""Tensors that are read elsewhere or need not be read -> the architecture that they are of; empty: any."""
At = tuple[str, int | None]
"""Role and layer."""


def read_tensors(
    file: GgufFile, spec: ModelSpec, dialect: Dialect, apart: GgufFile | None = None
) -> dict[At, GgufTensor]:
    """The tensors by role and layer; experts stacked in front.

    Args:
        apart: another file, with the predictors.

    Raises:
        TsconvertError: one is missing, has another shape than the keys make it, is of a type that cannot be computed
            with, or would not be computed with.
    """
    found: dict[At, GgufTensor] = {}
    wanted: list[At] = [("token_embd", None), ("output_norm", None)]
    wanted += [] if spec.tied else [("output", None)]
    roles = [*layer_roles(spec), *(PREDICTOR if dialect.transposed else ())]
    wanted += [(role, layer) for layer in range(spec.layers) for role in roles]
    used: set[str] = set()
    for role, at in wanted:
        name = _name(role, at, spec, dialect)
        tensor = file.tensors.get(name)
        if tensor is None and apart is not None:
            tensor = apart.tensors.get(name)
        if tensor is not None:
            used.add(name)
            tensor = _rows_of(file, tensor, role, spec, dialect)
            _check_shape(file, tensor, role, spec, dialect)
            _check_type(file, tensor, role)
            found[role, at] = tensor
        elif role not in PREDICTOR and not role.endswith("_bias"):
            raise TsconvertError(f"{file.path}: tensor {name} is missing; write the file again")
    _check_predictors(file, found, spec)
    _refuse_others(file, used, spec)
    return found


def _refuse_others(file: GgufFile, used: set[str], spec: ModelSpec) -> None:
    """Refuse tensors that would not be computed with: a bias, a norm of queries, a layer beyond the last."""
    read = [name for name, of in _OTHERS.items() if of in ("", file.architecture)]
    used |= {name.format(L=layer) for name in read for layer in range(spec.layers)}
    others = [name for name in file.tensors if name not in used]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise TsconvertError(
            f"{file.path}: tensor {label(others[0])}{more}, which the runner does not compute; run the file with the"
            " engine that it was made for"
        )


def _fused(role: str, dialect: Dialect) -> tuple[str, tuple[str, ...]] | None:
    """The tensor that holds the rows of a role among those of others, and their roles."""
    fused = dialect.family.gguf.fused if dialect.family else {}
    return next(((name, roles) for name, roles in fused.items() if role in roles), None)


def _name(role: str, layer: int | None, spec: ModelSpec, dialect: Dialect) -> str:
    names = dialect.family.gguf.names if dialect.family else {}
    whole = _fused(role, dialect)
    if whole is not None or role in names:
        return (whole[0] if whole else names[role]).format(L=layer)
    stacked = spec.experts and role in (*FFN, *PREDICTOR)
    return gguf_name(Place(role, layer, 0 if stacked else None), suffix=dialect.suffix(role))


def _rows_of(file: GgufFile, tensor: GgufTensor, role: str, spec: ModelSpec, dialect: Dialect) -> GgufTensor:
    """The tensor, or those of its rows that are of the role."""
    whole = _fused(role, dialect)
    if whole is None:
        return tensor
    rows = {each: shape_of(spec, Place(each, 0))[0] for each in whole[1]}
    if tensor.shape != (sum(rows.values()), spec.width):
        raise _misshapen(file, tensor, (sum(rows.values()), spec.width))
    first = sum(rows[each] for each in whole[1][: whole[1].index(role)])
    size = tensor.size_bytes // tensor.shape[0]
    raw = tensor.raw[first * size : (first + rows[role]) * size]
    return replace(tensor, shape=(rows[role], spec.width), offset=tensor.offset + first * size, raw=raw)


def _check_shape(file: GgufFile, tensor: GgufTensor, role: str, spec: ModelSpec, dialect: Dialect) -> None:
    if role in PREDICTOR:
        rank = tensor.shape[-2 if role == "fc1" else -1] if len(tensor.shape) > 1 else 0
        shape: tuple[int, ...] = (rank, spec.width) if role == "fc1" else (spec.neurons, rank)
    else:
        shape = shape_of(spec, Place(role, 0))
        shape = shape[::-1] if dialect.suffix(role) else shape
    if spec.experts and role in (*FFN, *PREDICTOR):
        shape = (spec.experts, *shape)
    if tensor.shape != shape:
        raise _misshapen(file, tensor, shape)


def _misshapen(file: GgufFile, tensor: GgufTensor, shape: tuple[int, ...]) -> TsconvertError:
    return TsconvertError(
        f"{file.path}: tensor {tensor.name} has shape {list(tensor.shape)} where the keys make it {list(shape)};"
        " write the file again"
    )


def _check_type(file: GgufFile, tensor: GgufTensor, role: str) -> None:
    """Refuse a type that cannot be computed with: what ggml has no functions for would be called at address 0."""
    if role in VECTORS:
        decoded(Keys(file), tensor)
        return
    functions = ggml.row_functions(tensor.type_name)
    if tensor.type_name != "F32" and not (functions.vec_dot and functions.to_float):
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} is {tensor.type_name}, no type to compute with; write the file again"
            " in another"
        )


def _check_predictors(file: GgufFile, found: Mapping[At, GgufTensor], spec: ModelSpec) -> None:
    for layer in range(spec.layers):
        fc1, fc2 = found.get(("fc1", layer)), found.get(("fc2", layer))
        if (fc1 is None) != (fc2 is None) or (fc1 is not None and fc2 is not None and fc1.shape[-2] != fc2.shape[-1]):
            raise TsconvertError(
                f"{file.path}: the predictor's fc1 and fc2 of layer {layer} do not fit; export it again"
            )
