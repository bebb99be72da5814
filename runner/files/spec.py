"""What a GGUF file's keys say about a model: its shape, its features and its ropes, in each of the three dialects."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError, shown
from ...common.progress import note
from ...model.families.family import Family
from ...model.files.gguf.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from ...model.files.gguf.file import POWERINFER, SPARSE, GgufTensor
from ...model.files.gguf.keys import Keys
from ...model.spec import ModelSpec
from ...model.tensor_names import BIASED, Place, gguf_name
from ..rope import Rope

FEATURES = (
    "geglu", "bias", "qk_norm", "qk_norm_whole", "post_norm", "both_norms", "layer_windows", "partial_rope",
    "local_rope", "layer_rope", "softcap", "temperature", "router_softmax", "up_scale", "longrope",
    "linear_predictors", "attention_share",
)  # fmt: skip
"""Of our dialect, by docs/format.md."""
_FIXED = {"attention.causal": (True,), "nextn_predict_layers": (0,), "expert_group_count": (0, 1)}
"""Keys that llama.cpp heeds in its files and the runner does not -> values that change nothing."""
_SOFTCAPS = {"attention_softcap": ("attn_logit_softcapping", 50.0), "logit_softcap": ("final_logit_softcapping", 30.0)}
"""Field of ModelSpec -> llama.cpp's key, and what it takes where there is none."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What kinds of files differ in."""

    name: str
    """`sparse`, `powerinfer` or `llama.cpp`."""
    transposed: bool = False
    """The down matrix has one row a neuron."""
    attention_share: float | None = None
    """Attention's output matrix has one row an input, and predicted mode keeps this share of them; None: it has not."""
    family: Family | None = None
    """Of llama.cpp's architectures."""

    @property
    def halves(self) -> bool:
        """Rope turns rows of a head half of what turns apart, not neighbours."""
        return self.family is not None and self.family.gguf.pairs == "half"

    def suffix(self, role: str) -> str:
        """What a role's name has behind it where its matrix is transposed."""
        turned = self.transposed if role == "ffn_down" else role == "attn_output" and self.attention_share is not None
        return "_t" if turned else ""

    def has(self, feature: str) -> bool:
        """Whether llama.cpp's architecture reads the keys of a feature (a field of ModelSpec)."""
        return self.family is not None and feature in self.family.gguf.native


def read_spec(keys: Keys, dialect: Dialect, activation: str) -> ModelSpec:
    """The spec of a file.

    Raises:
        TsconvertError: a key is missing, makes no sense, or says what the runner does not compute.
    """
    file = keys.file
    for name, harmless in _FIXED.items():
        value = keys.get(name)
        if value is not None and value not in harmless:
            raise TsconvertError(
                f"{file.path}: key {file.architecture}.{name} is {shown(value)}, which the runner does not compute; run"
                " the file with the engine that it was made for"
            )
    embedding = file.tensors.get(gguf_name(Place("token_embd")))
    if embedding is None:
        raise TsconvertError(f"{file.path}: tensor {gguf_name(Place('token_embd'))} is missing; write the file again")
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    experts = keys.whole("expert_count", 0)
    head_dim = keys.whole("attention.key_length", width // max(1, heads))
    rotated = keys.whole("rope.dimension_count", head_dim)
    neurons = keys.whole("feed_forward_length")
    fields: dict[str, Any] = {
        "family": "mixtral" if experts else "llama",
        "activation": activation,
        "layers": keys.whole("block_count"),
        "width": width,
        "neurons": keys.whole("expert_feed_forward_length", neurons) if experts else neurons,
        "heads": heads,
        "kv_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab": embedding.shape[0],
        "context": keys.whole("context_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_dim": None if rotated == head_dim else rotated,
        "tied": gguf_name(Place("output")) not in file.tensors,
        "experts": experts,
        "experts_per_token": keys.whole("expert_used_count", 0) if experts else 0,
        "thresholds": _thresholds(keys, "activation_threshold"),
        "up_thresholds": _thresholds(keys, "up_threshold"),
    }
    if dialect.family is not None:
        fields |= {"family": dialect.family.name, **_theirs(keys, dialect)}
    elif dialect.name == "sparse":
        fields |= _ours(keys)
    try:
        spec = ModelSpec(**fields)
        return replace(spec, **dialect.family.gguf.fixed(spec)) if dialect.family else spec
    except TsconvertError as error:
        raise TsconvertError(f"{file.path}: {error}; write the file again") from None


def _thresholds(keys: Keys, name: str) -> tuple[float, ...]:
    values = keys.get(name, []) if keys.file.architecture == SPARSE else []
    if not isinstance(values, list | tuple) or not all(isinstance(value, float) for value in values):
        raise TsconvertError(f"{keys.file.path}: {SPARSE}.{name} is no list of numbers; export it again")
    return tuple(values)


def _ours(keys: Keys) -> dict[str, Any]:
    """The features of our dialect; none in version 1."""
    path = keys.file.path
    named = keys.get("features", [])
    unknown = [name for name in named if name not in FEATURES] if isinstance(named, list) else [named]
    if unknown:
        raise TsconvertError(f"{path}: feature {shown(unknown[0])} is not known to this tsconvert; get a newer one")
    used = set(named) if keys.whole("format_version") > 1 else set()
    found: dict[str, Any] = {
        "sliding_window": keys.whole("attention.sliding_window", 0) or None,
        "norms": "post" if "post_norm" in used else "both" if "both_norms" in used else "pre",
        "qk_norm": "whole" if "qk_norm_whole" in used else "head" if "qk_norm" in used else "",
        "biases": _biases(keys) if "bias" in used else (),
        "up_scaled": "up_scale" in used,
    }
    if "layer_windows" in used:
        found["full_layers"] = _layers(keys, "attention.full_layers")
    if "layer_rope" in used:
        found["no_rope_layers"] = _layers(keys, "rope.no_rope_layers")
    if "local_rope" in used:
        found["local_rope_theta"] = keys.number("rope.freq_base_swa")
    if "softcap" in used:
        found |= {name: keys.number(key, 0.0) for name, (key, _) in _SOFTCAPS.items()}
    if "temperature" in used:
        found["attention_temperature"] = keys.number("attention.temperature_scale")
    if "router_softmax" in used:
        found["router_normalized"] = keys.get("expert_weights_norm", True) is True
    return found


def _theirs(keys: Keys, dialect: Dialect) -> dict[str, Any]:
    """The features of llama.cpp's architecture: those that its tensors show, and those whose keys it reads."""
    family = dialect.family
    assert family is not None
    found: dict[str, Any] = {
        "sliding_window": _window(keys, read=dialect.has("windows")),
        "norms": family.norms,
        "qk_norm": family.features.get("qk_norm", ""),
        "biases": _biases(keys),
    }
    if dialect.has("local_rope_theta"):
        found["local_rope_theta"] = keys.number("rope.freq_base_swa", family.local_rope_theta)
    found |= {name: keys.number(key, default) for name, (key, default) in _SOFTCAPS.items() if dialect.has(name)}
    for name in ("embedding_scale", "residual_scale"):
        if dialect.has(name):
            found[name] = keys.number(name, 1.0)
    if dialect.has("attention_scale"):
        found["attention_scale"] = keys.number("attention.scale", 0.0) or None
    if dialect.has("logit_scale"):
        found["logit_scale"] = 1 / (keys.number("logit_scale", 1.0) or 1.0)
    if dialect.has("attention_temperature"):
        found["attention_temperature"] = keys.number("attention.temperature_scale", 0.0)
    return found


def _biases(keys: Keys) -> tuple[str, ...]:
    """Roles of the matrices that have a bias in some layer."""
    names = keys.file.tensors
    layers = range(min(keys.whole("block_count"), len(names)))  # a damaged file may say two billion
    return tuple(role for role in BIASED if any(gguf_name(Place(f"{role}_bias", layer)) in names for layer in layers))


def _layers(keys: Keys, name: str) -> tuple[int, ...]:
    given, count = keys.get(name, []), keys.whole("block_count")
    if not isinstance(given, list) or not all(isinstance(each, int) and 0 <= each < count for each in given):
        raise TsconvertError(
            f"{keys.file.path}: key {keys.file.architecture}.{name} is {shown(given)}, it must be numbers of layers;"
            " write the file again"
        )
    return tuple(given)


def _window(keys: Keys, *, read: bool) -> int | None:
    """The sliding window. In llama.cpp's `llama` files there is none, whatever they say (its models/llama.cpp)."""
    window = keys.whole("attention.sliding_window", 0)
    if read or not window:
        return window or None
    if window < keys.whole("context_length"):
        architecture = keys.file.architecture
        note(
            f"{keys.file.path}: attention.sliding_window is {window}; as in llama.cpp, which does not read it in"
            f" {architecture} files, every token sees all before it"
        )
    return None


def read_ropes(keys: Keys, spec: ModelSpec, dialect: Dialect) -> tuple[Rope, Rope]:
    """The rope, and that of layers with a window: the same object where they do not differ.

    Raises:
        TsconvertError: the keys or tensors make no sense, or a scaling that the runner does not compute.
    """
    rope = _rope(keys, spec, dialect)
    if spec.local_rope_theta is None:
        return rope, rope
    return rope, Rope(base=spec.local_rope_theta, dimensions=rope.dimensions, original_context=rope.original_context)


def _rope(keys: Keys, spec: ModelSpec, dialect: Dialect) -> Rope:
    own = dialect.name == "sparse"
    dimensions = spec.rope_dim or spec.head_dim
    kind = str(keys.get("rope.scaling.type", "none" if own else "linear"))  # as llama.cpp's load_hparams
    factor = keys.number("rope.scaling.factor", 0.0 if own else keys.number("rope.scale_linear", 0.0))
    if dimensions % 2 or not 2 <= dimensions <= spec.head_dim or spec.head_dim % 2:
        raise TsconvertError(
            f"{keys.file.path}: rope over {dimensions} of {spec.head_dim} dimensions; write the file again"
        )
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise TsconvertError(
            f"{keys.file.path}: rope scaling {shown(kind)}; the runner knows none, linear, yarn, longrope and"
            " rope_freqs, run it with the engine that it was made for"
        )
    if kind == "longrope" and ROPE_LONG not in keys.file.tensors:
        raise TsconvertError(f"{keys.file.path}: tensor {ROPE_LONG} is missing; write the file again")
    if kind == "yarn" and spec.rope_theta <= 1.001:
        raise TsconvertError(
            f"{keys.file.path}: rope scaling yarn over a base of {spec.rope_theta:g}; write the file again"
        )
    reads_betas = own or keys.file.architecture == "mistral3"
    return Rope(
        base=spec.rope_theta,
        dimensions=dimensions,
        scaling=kind,
        factor=max(factor or 1.0, 1e-6),
        original_context=_original(keys, spec),
        attention_factor=_attention_factor(keys, max(factor or 1.0, 1.0)),
        beta_fast=keys.positive("rope.scaling.yarn_beta_fast", 32.0) if reads_betas else 32.0,
        beta_slow=keys.positive("rope.scaling.yarn_beta_slow", 1.0) if reads_betas else 1.0,
        divisors_H=_divisors(keys, ROPE_SHORT if ROPE_LONG in keys.file.tensors else ROPE_FREQS, dimensions),
        long_divisors_H=_divisors(keys, ROPE_LONG, dimensions),
    )


def _original(keys: Keys, spec: ModelSpec) -> int:
    found = keys.whole("rope.scaling.original_context_length", spec.context) or spec.context
    return keys.whole("attention.temperature_length", found) or found


def _attention_factor(keys: Keys, factor: float) -> float:
    """What cosines and sines are multiplied with beside YaRN's own factor. PowerInfer, older, knows none."""
    if keys.file.magic == POWERINFER:
        return 1.0
    found = keys.number("rope.scaling.attn_factor", 1.0)
    strength = keys.number("rope.scaling.yarn_log_multiplier", 0.0) if keys.file.architecture == "mistral3" else 0.0
    return found / (0.1 * strength * float(np.log(factor)) + 1.0)


def _divisors(keys: Keys, name: str, dimensions: int) -> npt.NDArray[np.float32] | None:
    tensor = keys.file.tensors.get(name)
    if tensor is None:
        return None
    if tensor.shape != (dimensions // 2,):
        raise TsconvertError(f"{keys.file.path}: {name} has shape {list(tensor.shape)}; write the file again")
    found_H = decoded(keys, tensor)
    if not (np.isfinite(found_H) & (found_H > 0)).all():
        raise TsconvertError(f"{keys.file.path}: {name} holds numbers that are not above 0; write the file again")
    return found_H


def decoded(keys: Keys, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """The values of a tensor.

    Raises:
        TsconvertError: they cannot be decoded; names file and tensor.
    """
    try:
        return tensor.to_float32()
    except TsconvertError as error:
        raise TsconvertError(f"{keys.file.path}: tensor {tensor.name}: {error}; write the file again") from None
