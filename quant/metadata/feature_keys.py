"""The keys of what plain Llama has not, in llama.cpp's architectures and in our dialect (docs/format.md)."""

from ...model.families.family import Gguf
from ...model.spec import ModelSpec
from ..gguf.values import Value, array, boolean, f32, u32

_SCALES = {
    "embedding_scale": "embedding_scale", "residual_scale": "residual_scale", "attention_scale": "attention.scale",
    "logit_scale": "logit_scale",
}  # fmt: skip


def used_features(spec: ModelSpec, *, linear_predictors: bool = False, attention_share: bool = False) -> list[str]:
    """The features, by docs/format.md's names, that a reader of our dialect has to know."""
    windowed = spec.sliding_window is not None
    found = {
        "geglu": spec.activation in ("geglu", "tgeglu"),
        "bias": bool(spec.biases),
        "qk_norm": spec.qk_norm == "head",
        "qk_norm_whole": spec.qk_norm == "whole",
        "post_norm": spec.norms == "post",
        "both_norms": spec.norms == "both",
        "layer_windows": windowed and bool(spec.full_layers),
        "partial_rope": spec.rope_dim is not None,
        "local_rope": windowed and spec.local_rope_theta is not None,
        "layer_rope": bool(spec.no_rope_layers),
        "softcap": spec.attention_softcap > 0 or spec.logit_softcap > 0,
        "temperature": spec.attention_temperature > 0,
        "router_softmax": bool(spec.experts) and not spec.router_normalized,
        "up_scale": spec.up_scaled,
        "longrope": (spec.rope_scaling or {}).get("rope_type") == "longrope",
        "linear_predictors": linear_predictors,
        "attention_share": attention_share,
    }
    return [name for name, used in found.items() if used]


def feature_keys(spec: ModelSpec, architecture: str, gguf: Gguf | None) -> dict[str, Value]:
    """The keys of a model's features.

    Args:
        gguf: llama.cpp's architecture, or None for our dialect.
    """
    keys: dict[str, Value] = {}
    windows = gguf is None or "windows" in gguf.native
    if spec.sliding_window is not None and windows:
        keys["attention.sliding_window"] = u32(spec.sliding_window)
        if spec.local_rope_theta is not None:
            keys["rope.freq_base_swa"] = f32(spec.local_rope_theta)
    if spec.attention_softcap:
        keys["attn_logit_softcapping"] = f32(spec.attention_softcap)
    if spec.logit_softcap:
        keys["final_logit_softcapping"] = f32(spec.logit_softcap)
    if spec.attention_temperature:
        keys["attention.temperature_scale"] = f32(spec.attention_temperature)
    if gguf is None:
        keys |= _own_keys(spec)
    else:
        keys |= _native_keys(spec, gguf)
    return {f"{architecture}.{name}": value for name, value in keys.items()}


def _own_keys(spec: ModelSpec) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    if spec.sliding_window is not None and spec.full_layers:
        keys["attention.full_layers"] = array("u32", list(spec.full_layers))
    if spec.no_rope_layers:
        keys["rope.no_rope_layers"] = array("u32", list(spec.no_rope_layers))
    if spec.attention_temperature:
        keys["attention.temperature_length"] = u32(int((spec.rope_scaling or {})["original_max_position_embeddings"]))
    if spec.experts and not spec.router_normalized:
        keys["expert_weights_norm"] = boolean(False)
    return keys


def _native_keys(spec: ModelSpec, gguf: Gguf) -> dict[str, Value]:
    keys: dict[str, Value] = {}
    for name, key in _SCALES.items():
        value = getattr(spec, name)
        if name in gguf.native and value is not None:
            keys[key] = f32(1 / value if name == "logit_scale" else value)  # a divisor there
    if spec.experts and gguf.architecture != "llama":
        keys["expert_feed_forward_length"] = u32(spec.neurons)
    return keys
