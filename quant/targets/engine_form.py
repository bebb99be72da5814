"""What an engine makes of a model's tensors: names, order of rows, and the factors that fold into weights.

A feature that an engine computes itself (`Gguf.native`), or has built in (`Gguf.fixed`), stays in its keys; scales that
it does not know go into weights, exactly but for rounding; what it lacks beside these is refused by name. The norms'
offset (1 + w) is always folded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import sqrt
from typing import Any

from ...common.errors import TsconvertError, shown
from ...model.families import FAMILIES
from ...model.families.family import Gguf
from ...model.spec import THRESHOLDED, ModelSpec
from ...model.tensor_names import UP_SCALE, Place, gguf_name, layer_roles

_SCALES = ("embedding_scale", "residual_scale", "logit_scale", "attention_scale")
_CHECKED = {
    "biases": "biases", "full_layers": "layers with and without the sliding window",
    "rope_dim": "rope in a part of each head", "local_rope_theta": "another rope in the layers with a window",
    "no_rope_layers": "layers without rope", "attention_softcap": "a soft cap of attention's scores",
    "logit_softcap": "a soft cap of logits", "attention_temperature": "queries that grow with the position",
    "router_normalized": "experts' weights that do not sum to 1",
}  # fmt: skip
_PLAIN = {each.name: each.default for each in fields(ModelSpec)}


@dataclass(frozen=True, kw_only=True)
class EngineForm:
    """How an engine wants the tensors of a model."""

    spec: ModelSpec
    permuted: bool
    """Rows of q and k go to ggml's adjacent pairs."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """Role -> what its values are multiplied by."""
    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    thresholds: bool = True
    """The engine has activations' thresholds, and what goes with them."""

    @property
    def roles(self) -> list[str]:
        """The roles of a layer's tensors that the engine has."""
        return [role for role in layer_roles(self.spec) if self.thresholds or role != UP_SCALE]

    def name(self, place: Place) -> str:
        """The tensor's name in the file."""
        name = self.names.get(place.role)
        return gguf_name(place) if name is None else name.format(L=place.layer)

    def heads(self, role: str) -> int:
        """Heads whose rows (of a vector: values) go to adjacent pairs; 0 where they stay."""
        kind = role.removesuffix("_bias").removesuffix("_norm")
        if not self.permuted or kind not in ("attn_q", "attn_k") or role == "attn_norm":
            return 0
        if role.endswith("_norm") and self.spec.qk_norm == "head":
            return 1
        return self.spec.heads if kind == "attn_q" else self.spec.kv_heads

    def offset(self, role: str) -> float:
        """What is added to the values of a role."""
        return self.spec.norm_offset if role.endswith("norm") else 0.0

    def whole(self, role: str) -> tuple[str, tuple[str, ...]] | None:
        """The tensor that holds a role's rows among others', and all of their roles."""
        return next(((name, roles) for name, roles in self.fused.items() if role in roles), None)


def engine_form(spec: ModelSpec, gguf: Gguf | None, where: str) -> EngineForm:
    """The form for llama.cpp's architecture ``gguf``, or for our own dialect, which knows all features but scales.

    Args:
        where: the engine, for errors.

    Raises:
        TsconvertError: the engine computes something else than this model, and no weights can make up for it.
    """
    theirs = {**_PLAIN, "activation": "swiglu", **(gguf.fixed(spec) if gguf else {})}
    native = set(_CHECKED) if gguf is None else set(gguf.native)
    if gguf is not None:
        _refuse(spec, theirs, native, where)
    ratio = {}
    for name in _SCALES:
        ours = _scale(spec, getattr(spec, name), name)
        ratio[name] = 1.0 if name in native else ours / _scale(spec, theirs[name], name)
    family = FAMILIES[spec.family]
    adjacent = gguf is None or gguf.pairs == "adjacent"
    assert adjacent or not family.adjacent_pairs, "no engine turns halves apart where the checkpoint turns neighbours"
    return EngineForm(
        spec=spec, permuted=adjacent and not family.adjacent_pairs, factors=_factors(spec, ratio),
        names=gguf.names if gguf else {}, fused=gguf.fused if gguf else {}, thresholds=gguf is None,
    )  # fmt: skip


def _scale(spec: ModelSpec, value: float | None, name: str) -> float:
    return 1 / sqrt(spec.head_dim) if name == "attention_scale" and value is None else float(value or 0)


def _factors(spec: ModelSpec, ratio: Mapping[str, float]) -> dict[str, float]:
    embedding, residual, logits, attention = (ratio[name] for name in _SCALES)
    outputs = ("attn_output", "attn_output_bias", "ffn_down", "ffn_down_bias")
    found = {
        "token_embd": embedding,
        "output_norm": logits / (embedding if spec.tied else 1.0),
        **dict.fromkeys(outputs if spec.norms == "pre" else ("attn_post_norm", "ffn_post_norm"), residual),
        **dict.fromkeys(("attn_q_norm",) if spec.qk_norm else ("attn_q", "attn_q_bias"), attention),
    }
    return {role: factor for role, factor in found.items() if abs(factor - 1) > 1e-12}


def _refuse(spec: ModelSpec, theirs: Mapping[str, Any], native: set[str], where: str) -> None:
    computed = THRESHOLDED.get(spec.activation, spec.activation)
    if (not spec.sparse or spec.activation in THRESHOLDED) and computed != theirs["activation"]:
        raise TsconvertError(
            f"{where} computes {theirs['activation']} and this model {spec.activation}; export with --target sparse"
        )
    for name, what in _CHECKED.items():
        ours = getattr(spec, name)
        if name in native or ours == theirs[name]:
            continue
        if name in ("full_layers", "local_rope_theta") and spec.sliding_window is None:
            continue
        if name == "full_layers" and "windows" not in native:  # within the window, where the context ends, all see all
            continue
        raise TsconvertError(
            f"{where} has not this model's {what} ({name} is {shown(ours)}, there {shown(theirs[name])}); export with"
            " --target sparse"
        )
