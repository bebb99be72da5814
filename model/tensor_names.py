"""Every tensor of a model by its place, and the name of each place in GGUF and Hugging Face files.

A place is a role (`ffn_gate`), and where it has one a layer and an expert. GGUF names stand here, Hugging Face names in
`families/`; no other file spells tensor names out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from .families import FAMILIES
from .spec import ModelSpec

# {L} is the layer, {X} a suffix: GGUF stacks the experts of a layer.
GGUF_NAMES = {
    "token_embd": "token_embd.weight",
    "attn_norm": "blk.{L}.attn_norm.weight",
    "attn_q": "blk.{L}.attn_q.weight",
    "attn_k": "blk.{L}.attn_k.weight",
    "attn_v": "blk.{L}.attn_v.weight",
    "attn_output": "blk.{L}.attn_output{X}.weight",
    "attn_q_norm": "blk.{L}.attn_q_norm.weight",
    "attn_k_norm": "blk.{L}.attn_k_norm.weight",
    "attn_post_norm": "blk.{L}.post_attention_norm.weight",
    "ffn_norm": "blk.{L}.ffn_norm.weight",
    "router": "blk.{L}.ffn_gate_inp.weight",
    "ffn_gate": "blk.{L}.ffn_gate{X}.weight",
    "ffn_up": "blk.{L}.ffn_up{X}.weight",
    "ffn_down": "blk.{L}.ffn_down{X}.weight",
    "ffn_up_scale": "blk.{L}.ffn_up_scale.weight",
    "ffn_post_norm": "blk.{L}.post_ffw_norm.weight",
    "fc1": "blk.{L}.fc1{X}.weight",
    "fc2": "blk.{L}.fc2{X}.weight",
    "output_norm": "output_norm.weight",
    "output": "output.weight",
}
BIASED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""Roles of the matrices that may have a bias; its role ends in _bias."""
GGUF_NAMES |= {f"{role}_bias": f"blk.{{L}}.{role}.bias" for role in BIASED}
NORMS = ("attn_norm", "attn_q_norm", "attn_k_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm")
"""The norms of a layer; each kind of model has some of them."""
UP_SCALE = "ffn_up_scale"
"""Of SwiGLU with thresholds: a float32 number a neuron, [F] or [E, F], of all experts in one tensor."""
VECTORS = {*NORMS, "output_norm", *(f"{role}_bias" for role in BIASED), UP_SCALE}
"""Roles of tensors that are computed with as float32 numbers, and are no matrices."""
ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")
PREDICTOR = ("fc1", "fc2")
MATRICES = (*ATTENTION[1:], "router", *FFN, *PREDICTOR)
"""The matrices of a layer, in the order that the runner's table of weights has."""


@dataclass(frozen=True, order=True)
class Place:
    """The place of a tensor in a model."""

    role: str
    layer: int | None = None
    expert: int | None = None


def hf_name(spec: ModelSpec, place: Place) -> str:
    """The name of the tensor at ``place`` in a Hugging Face checkpoint."""
    return FAMILIES[spec.family].name_of(place.role).format(L=place.layer, E=place.expert)


def hf_whole(spec: ModelSpec, place: Place) -> str | None:
    """The name of the tensor that holds the rows of the one at ``place`` among others, None where it is its own."""
    whole = FAMILIES[spec.family].whole(place.role)
    return None if whole is None else whole.format(L=place.layer)


def gguf_name(place: Place, *, suffix: str = "") -> str:
    """The GGUF name of the tensor at ``place``; the experts of a layer share one; ``suffix`` is `_t` if transposed."""
    template = GGUF_NAMES[place.role]
    stacked = suffix + ("_exps" if place.expert is not None else "")
    if suffix and "{X}" not in template:
        raise ValueError(f"{place.role} takes no suffix")
    return template.format(L=place.layer, X=stacked)


def layer_places(spec: ModelSpec, layer: int) -> list[Place]:
    """The tensors of one decoder layer, in the order in which they are written."""
    roles = layer_roles(spec)
    if not spec.experts:
        return [Place(role, layer) for role in roles]
    places = [Place(role, layer) for role in roles if role not in FFN]
    return places + [Place(role, layer, expert) for expert in range(spec.experts) for role in FFN]


def layer_roles(spec: ModelSpec) -> list[str]:
    """The roles of the tensors of one decoder layer, in the order in which they are written."""
    pre, post = spec.norms != "post", spec.norms != "pre"
    biases = {part: [f"{role}_bias" for role in spec.biases if role.startswith(part)] for part in ("attn", "ffn")}
    groups = [
        ["attn_norm"] if pre else [], ATTENTION[1:], biases["attn"],
        ["attn_q_norm", "attn_k_norm"] if spec.qk_norm else [],
        ["attn_post_norm"] if post else [], ["ffn_norm"] if pre else [], ["router"] if spec.experts else [],
        FFN, biases["ffn"], [UP_SCALE] if spec.up_scaled else [], ["ffn_post_norm"] if post else [],
    ]  # fmt: skip
    return [role for group in groups for role in group]


def model_places(spec: ModelSpec) -> Iterator[Place]:
    """Every tensor of the model, predictors left out."""
    yield Place("token_embd")
    for layer in range(spec.layers):
        yield from layer_places(spec, layer)
    yield Place("output_norm")
    if not spec.tied:
        yield Place("output")


def ffn_places(spec: ModelSpec, layer: int, role: str) -> list[Place]:
    """The places of ``role`` (`ffn_gate`, `fc1`, ...) in ``layer``: one, or one an expert."""
    return [Place(role, layer, expert if spec.experts else None) for expert in range(spec.ffns)]


def shape_of(spec: ModelSpec, place: Place) -> tuple[int, ...]:
    """The shape that the tensor at ``place`` must have in a Hugging Face checkpoint (rows first)."""
    D, F, V = spec.width, spec.neurons, spec.vocab
    heads_D, kv_D = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    if place.role == UP_SCALE:
        return (spec.experts, F) if spec.experts else (F,)
    rows = {
        "attn_q": heads_D, "attn_k": kv_D, "attn_v": kv_D, "attn_output": D, "router": spec.experts,
        "ffn_gate": F, "ffn_up": F, "ffn_down": D, "token_embd": V, "output": V,
    }  # fmt: skip
    if place.role in ("attn_q_norm", "attn_k_norm"):
        return (rows[place.role.removesuffix("_norm")] if spec.qk_norm == "whole" else spec.head_dim,)
    if place.role.endswith("_bias"):
        return (rows[place.role.removesuffix("_bias")],)
    if place.role.endswith("norm"):
        return (D,)
    return (rows[place.role], {"attn_output": heads_D, "ffn_down": F}.get(place.role, D))
