"""The GGUF files that the runner reads: tsconvert's `sparse` target, PowerInfer's, and llama.cpp's Llama and Mixtral.

What they differ in (keys, names, the layout of the down matrix, what predictors see) ends here: a `ModelFile` looks the
same whatever it was read from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError, label, shown
from ..common.progress import note
from ..model.spec import ModelSpec
from ..model.tensor_names import FFN, MATRICES, PREDICTOR, Place, gguf_name
from ..quant.gguf.file import POWERINFER, GgufFile, GgufTensor
from ..quant.targets import separate_predictors
from ..quant.types import ggml
from .rope import Rope

SPARSE, FORMAT_VERSION = "turbosparse", 1
ROPE_FREQS = "rope_freqs.weight"
_OTHERS = {ROPE_FREQS: "", "blk.{L}.ffn_order": SPARSE}
"""Tensors that are read elsewhere or need not be read -> the architecture that they are of; empty: any."""
_FIXED = {"attention.causal": (True,), "nextn_predict_layers": (0,), "expert_group_count": (0, 1)}
"""Keys that llama.cpp heeds in `llama` files and the runner does not -> values that change nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A GGUF file that the runner can run, checked."""

    file: GgufFile
    dialect: str
    """`sparse`, `powerinfer` or `llama.cpp`."""
    spec: ModelSpec
    rope: Rope
    transposed: bool
    """The down matrix has one row a neuron, so rows can be left out."""
    normed_predictors: bool
    """Predictors see the FFN's input after its norm."""
    tensors: Mapping[tuple[str, int | None], GgufTensor]
    """By role and layer; experts stacked in front."""
    thresholds: npt.NDArray[np.float32]
    """[layers, FFNs of a layer], NaN where there is no predictor."""

    @property
    def has_predictors(self) -> bool:
        """Some FFN has a predictor."""
        return bool(np.isfinite(self.thresholds).any())

    @property
    def rank(self) -> int:
        """The largest rank of a predictor, 0 without."""
        return max((tensor.shape[-2] for (role, _), tensor in self.tensors.items() if role == "fc1"), default=0)


def open_model(path: str | Path) -> ModelFile:
    """Read and check a GGUF file for the runner.

    Raises:
        TsconvertError: no GGUF file, damaged, or none of the three kinds; the message says which.
    """
    file = GgufFile(path)
    name = file.architecture
    if file.magic == POWERINFER:
        if name not in ("bamboo", "llama"):
            raise TsconvertError(
                f"{path}: PowerInfer file of architecture {shown(name)}; the runner knows bamboo and llama, run it with"
                " PowerInfer"
            )
        return _powerinfer(file, "drelu" if name == "bamboo" else "reglu")
    if name == SPARSE:
        return _sparse(file)
    if name == "llama":
        return _llama(file)
    raise TsconvertError(
        f"{path}: architecture {shown(name)}; the runner knows {SPARSE}, llama (also Mixtral) and PowerInfer's files,"
        " run it with the engine that it was made for"
    )


def _sparse(file: GgufFile) -> ModelFile:
    apart = separate_predictors.find_separate(file)
    keys = _Keys(file)
    version = keys.whole("format_version")
    if version != FORMAT_VERSION:
        raise TsconvertError(
            f"{file.path}: sparse format {shown(version)}, this tsconvert reads {FORMAT_VERSION}; export it again"
        )
    activation = str(keys.get("activation", "drelu"))
    spec = _spec(keys, activation, keys.get("activation_threshold", []), keys.get("up_threshold", []))
    tensors = _tensors(file, spec, transposed=True, apart=apart)
    thresholds = np.full((spec.layers, spec.ffns), np.nan, np.float32)
    given = (apart or file).metadata.get(f"{SPARSE}.predictor.threshold", [])
    if given:
        numbers = isinstance(given, list) and all(isinstance(each, int | float) for each in given)
        if not numbers or len(given) != thresholds.size:
            raise TsconvertError(
                f"{file.path}: {SPARSE}.predictor.threshold needs {thresholds.size} numbers; export it again"
            )
        thresholds[:] = np.array(given, np.float32).reshape(thresholds.shape)
    for layer in range(spec.layers):
        if np.isfinite(thresholds[layer]).any() and ("fc1", layer) not in tensors:
            raise TsconvertError(f"{file.path}: layer {layer} has a threshold and no predictor; export it again")
    return ModelFile(
        file=file, dialect="sparse", spec=spec, rope=_rope(keys, spec), transposed=True, normed_predictors=True,
        tensors=tensors, thresholds=thresholds,
    )  # fmt: skip


def _powerinfer(file: GgufFile, activation: str) -> ModelFile:
    keys = _Keys(file)
    spec = _spec(keys, activation)
    tensors = _tensors(file, spec, transposed=True)
    threshold = file.metadata.get("powerinfer.sparse_threshold", 0.0)
    if not isinstance(threshold, float):
        raise TsconvertError(
            f"{file.path}: key powerinfer.sparse_threshold is {shown(threshold)}, it must be a number; write the file"
            " again"
        )
    thresholds = np.full((spec.layers, 1), np.nan, np.float32)
    for layer in range(spec.layers):
        if ("fc1", layer) in tensors:
            thresholds[layer] = threshold
    return ModelFile(
        file=file, dialect="powerinfer", spec=spec, rope=_rope(keys, spec), transposed=True, normed_predictors=False,
        tensors=tensors, thresholds=thresholds,
    )  # fmt: skip


def _llama(file: GgufFile) -> ModelFile:
    keys = _Keys(file)
    spec = _spec(keys, "swiglu")
    none = np.full((spec.layers, spec.ffns), np.nan, np.float32)
    return ModelFile(
        file=file, dialect="llama.cpp", spec=spec, rope=_rope(keys, spec), transposed=False, normed_predictors=True,
        tensors=_tensors(file, spec, transposed=False), thresholds=none,
    )  # fmt: skip


class _Keys:
    """The metadata keys of a file's architecture."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file

    def get(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.file.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._bad(name, value, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self._bad(name, value, "a number")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        value = self.number(name, default)
        if not 1e-6 <= value <= 1e6:
            raise self._bad(name, value, "0.000001 to 1000000")
        return value

    def _bad(self, name: str, value: Any, wanted: str) -> TsconvertError:
        key = f"{self.file.architecture}.{name}"
        return TsconvertError(
            f"{self.file.path}: key {key} is {shown(value)}, it must be {wanted}; write the file again"
        )


def _spec(keys: _Keys, activation: str, shifts: Any = (), up_shifts: Any = ()) -> ModelSpec:
    file = keys.file
    for name, harmless in _FIXED.items():
        value = keys.get(name)
        if value is not None and value not in harmless:
            raise TsconvertError(
                f"{file.path}: key {file.architecture}.{name} is {shown(value)}, which the runner does not compute; run"
                " the file with the engine that it was made for"
            )
    for name, values in (("activation_threshold", shifts), ("up_threshold", up_shifts)):
        if not isinstance(values, list | tuple) or not all(isinstance(value, float) for value in values):
            raise TsconvertError(f"{file.path}: {SPARSE}.{name} is no list of numbers; export it again")
    embedding = file.tensors.get(gguf_name(Place("token_embd")))
    if embedding is None:
        raise TsconvertError(f"{file.path}: tensor {gguf_name(Place('token_embd'))} is missing; write the file again")
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    experts = keys.whole("expert_count", 0)
    fields: dict[str, Any] = {
        "family": "mixtral" if experts else "llama",
        "activation": activation,
        "layers": keys.whole("block_count"),
        "width": width,
        "neurons": keys.whole("feed_forward_length"),
        "heads": heads,
        "kv_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": keys.whole("attention.key_length", width // max(1, heads)),
        "vocab": embedding.shape[0],
        "context": keys.whole("context_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "sliding_window": _window(keys),
        "tied": gguf_name(Place("output")) not in file.tensors,
        "experts": experts,
        "experts_per_token": keys.whole("expert_used_count", 0) if experts else 0,
        "thresholds": tuple(shifts),
        "up_thresholds": tuple(up_shifts),
    }
    try:
        return ModelSpec(**fields)
    except TsconvertError as error:
        raise TsconvertError(f"{file.path}: {error}; write the file again") from None


def _window(keys: _Keys) -> int | None:
    """The sliding window. In `llama` files there is none, whatever they say: llama.cpp's llama.cpp (models/)."""
    window = keys.whole("attention.sliding_window", 0)
    if keys.file.architecture == SPARSE or not window:
        return window or None
    if window < keys.whole("context_length"):
        note(
            f"{keys.file.path}: attention.sliding_window is {window}; as in llama.cpp, which does not read it in llama"
            " files, every token sees all before it"
        )
    return None


def _rope(keys: _Keys, spec: ModelSpec) -> Rope:
    own = keys.file.architecture == SPARSE
    dimensions = keys.whole("rope.dimension_count", spec.head_dim)
    kind = str(keys.get("rope.scaling.type", "none" if own else "linear"))  # as llama.cpp's load_hparams
    factor = keys.number("rope.scaling.factor", 0.0 if own else keys.number("rope.scale_linear", 0.0))
    if dimensions % 2 or not 2 <= dimensions <= spec.head_dim or spec.head_dim % 2:
        raise TsconvertError(
            f"{keys.file.path}: rope over {dimensions} of {spec.head_dim} dimensions; write the file again"
        )
    if kind not in ("none", "linear", "yarn"):
        raise TsconvertError(
            f"{keys.file.path}: rope scaling {shown(kind)}; the runner knows none, linear, yarn and rope_freqs, run it"
            " with the engine that it was made for"
        )
    divisors = keys.file.tensors.get(ROPE_FREQS)
    if divisors is not None and divisors.shape != (dimensions // 2,):
        raise TsconvertError(f"{keys.file.path}: {ROPE_FREQS} has shape {list(divisors.shape)}; write the file again")
    divisors_H = None if divisors is None else _decoded(keys.file, divisors)
    if divisors_H is not None and not (np.isfinite(divisors_H) & (divisors_H > 0)).all():
        raise TsconvertError(f"{keys.file.path}: {ROPE_FREQS} holds numbers that are not above 0; write the file again")
    if kind == "yarn" and spec.rope_theta <= 1.001:
        raise TsconvertError(
            f"{keys.file.path}: rope scaling yarn over a base of {spec.rope_theta:g}; write the file again"
        )
    return Rope(
        base=spec.rope_theta,
        dimensions=dimensions,
        scaling=kind,
        factor=max(factor or 1.0, 1e-6),
        original_context=keys.whole("rope.scaling.original_context_length", spec.context) or spec.context,
        # neither engine reads the betas, and PowerInfer, older, no factor of attention
        attention_factor=1.0 if keys.file.magic == POWERINFER else keys.number("rope.scaling.attn_factor", 1.0),
        beta_fast=keys.positive("rope.scaling.yarn_beta_fast", 32.0) if own else 32.0,
        beta_slow=keys.positive("rope.scaling.yarn_beta_slow", 1.0) if own else 1.0,
        divisors_H=divisors_H,
    )


def _tensors(
    file: GgufFile, spec: ModelSpec, *, transposed: bool, apart: GgufFile | None = None
) -> dict[tuple[str, int | None], GgufTensor]:
    found: dict[tuple[str, int | None], GgufTensor] = {}
    wanted: list[tuple[str, int | None]] = [("token_embd", None), ("output_norm", None)]
    wanted += [] if spec.tied else [("output", None)]
    left_out = {*(() if transposed else PREDICTOR), *(() if spec.experts else ("router",))}
    roles = [role for role in ("attn_norm", "ffn_norm", *MATRICES) if role not in left_out]
    wanted += [(role, layer) for layer in range(spec.layers) for role in roles]
    for role, at in wanted:
        name = _name(role, at, spec, transposed)
        tensor = file.tensors.get(name)
        if tensor is None and apart is not None:
            tensor = apart.tensors.get(name)
        if tensor is not None:
            _check_shape(file, tensor, role, spec, transposed)
            _check_type(file, tensor, role)
            found[role, at] = tensor
        elif role not in PREDICTOR:
            raise TsconvertError(f"{file.path}: tensor {name} is missing; write the file again")
    _check_predictors(file, found, spec)
    _refuse_others(file, {tensor.name for tensor in found.values()}, spec)
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


def _name(role: str, layer: int | None, spec: ModelSpec, transposed: bool) -> str:
    stacked = spec.experts and role in (*FFN, *PREDICTOR)
    suffix = "_t" if transposed and role == "ffn_down" else ""
    return gguf_name(Place(role, layer, 0 if stacked else None), suffix=suffix)


def _check_shape(file: GgufFile, tensor: GgufTensor, role: str, spec: ModelSpec, transposed: bool) -> None:
    D, F, V = spec.width, spec.neurons, spec.vocab
    heads, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shape: tuple[int, ...] = {
        "token_embd": (V, D), "output": (V, D), "output_norm": (D,), "attn_norm": (D,), "ffn_norm": (D,),
        "attn_q": (heads, D), "attn_k": (kv, D), "attn_v": (kv, D), "attn_output": (D, heads),
        "router": (spec.experts, D), "ffn_gate": (F, D), "ffn_up": (F, D),
        "ffn_down": (F, D) if transposed else (D, F), "fc1": (tensor.shape[-2] if len(tensor.shape) > 1 else 0, D),
        "fc2": (F, tensor.shape[-1]),
    }[role]  # fmt: skip
    if spec.experts and role in (*FFN, *PREDICTOR):
        shape = (spec.experts, *shape)
    if tensor.shape != shape:
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} has shape {list(tensor.shape)} where the keys make it {list(shape)};"
            " write the file again"
        )


def _check_type(file: GgufFile, tensor: GgufTensor, role: str) -> None:
    """Refuse a type that cannot be computed with: what ggml has no functions for would be called at address 0."""
    if role.endswith("norm"):
        _decoded(file, tensor)
        return
    functions = ggml.row_functions(tensor.type_name)
    if tensor.type_name != "F32" and not (functions.vec_dot and functions.to_float):
        raise TsconvertError(
            f"{file.path}: tensor {tensor.name} is {tensor.type_name}, no type to compute with; write the file again"
            " in another"
        )


def _decoded(file: GgufFile, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    try:
        return tensor.to_float32()
    except TsconvertError as error:
        raise TsconvertError(f"{file.path}: tensor {tensor.name}: {error}; write the file again") from None


def _check_predictors(file: GgufFile, found: Mapping[tuple[str, int | None], GgufTensor], spec: ModelSpec) -> None:
    for layer in range(spec.layers):
        fc1, fc2 = found.get(("fc1", layer)), found.get(("fc2", layer))
        if (fc1 is None) != (fc2 is None) or (fc1 is not None and fc2 is not None and fc1.shape[-2] != fc2.shape[-1]):
            raise TsconvertError(
                f"{file.path}: the predictor's fc1 and fc2 of layer {layer} do not fit; export it again"
            )
