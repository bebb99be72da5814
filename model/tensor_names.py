"""The one table of tensor names: Hugging Face's and GGUF's name for each place in a model.

A place is a role (`ffn_gate`), and where it has one a layer and an expert. No other file spells tensor names out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .spec import ModelSpec

# role: (Hugging Face dense, Hugging Face Mixtral, GGUF). {L} is the layer, {E} the expert; GGUF stacks the experts.
_LAYER = "model.layers.{L}."
_MOE = _LAYER + "block_sparse_moe."
_EXPERT = _MOE + "experts.{E}."
TABLE: dict[str, tuple[str, str, str]] = {
    "token_embd": ("model.embed_tokens.weight", "model.embed_tokens.weight", "token_embd.weight"),
    "attn_norm": (_LAYER + "input_layernorm.weight",) * 2 + ("blk.{L}.attn_norm.weight",),
    "attn_q": (_LAYER + "self_attn.q_proj.weight",) * 2 + ("blk.{L}.attn_q.weight",),
    "attn_k": (_LAYER + "self_attn.k_proj.weight",) * 2 + ("blk.{L}.attn_k.weight",),
    "attn_v": (_LAYER + "self_attn.v_proj.weight",) * 2 + ("blk.{L}.attn_v.weight",),
    "attn_output": (_LAYER + "self_attn.o_proj.weight",) * 2 + ("blk.{L}.attn_output.weight",),
    "ffn_norm": (_LAYER + "post_attention_layernorm.weight",) * 2 + ("blk.{L}.ffn_norm.weight",),
    "router": ("", _MOE + "gate.weight", "blk.{L}.ffn_gate_inp.weight"),
    "ffn_gate": (_LAYER + "mlp.gate_proj.weight", _EXPERT + "w1.weight", "blk.{L}.ffn_gate{X}.weight"),
    "ffn_up": (_LAYER + "mlp.up_proj.weight", _EXPERT + "w3.weight", "blk.{L}.ffn_up{X}.weight"),
    "ffn_down": (_LAYER + "mlp.down_proj.weight", _EXPERT + "w2.weight", "blk.{L}.ffn_down{X}.weight"),
    "fc1": (_LAYER + "mlp.predictor.fc1.weight", _EXPERT + "predictor.fc1.weight", "blk.{L}.fc1{X}.weight"),
    "fc2": (_LAYER + "mlp.predictor.fc2.weight", _EXPERT + "predictor.fc2.weight", "blk.{L}.fc2{X}.weight"),
    "output_norm": ("model.norm.weight", "model.norm.weight", "output_norm.weight"),
    "output": ("lm_head.weight", "lm_head.weight", "output.weight"),
}
ATTENTION = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
FFN = ("ffn_gate", "ffn_up", "ffn_down")
PREDICTOR = ("fc1", "fc2")
# Mixtral as transformers 5 holds it in memory: all experts in one tensor, gate and up in one.
FUSED_GATE_UP = _LAYER + "mlp.experts.gate_up_proj"
FUSED_DOWN = _LAYER + "mlp.experts.down_proj"
FUSED_ROUTER = _LAYER + "mlp.gate.weight"
IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")


@dataclass(frozen=True, order=True)
class Place:
    """Where in a model a tensor stands."""

    role: str
    layer: int | None = None
    expert: int | None = None


def hf_name(place: Place) -> str:
    """The Hugging Face name of the tensor at ``place``."""
    dense, moe, _ = TABLE[place.role]
    template = dense if place.expert is None and place.role != "router" else moe
    return template.format(L=place.layer, E=place.expert)


def module_name(role: str) -> str:
    """The name of a tensor within transformers' decoder layer; of an FFN that is no expert."""
    template = FUSED_ROUTER if role == "router" else TABLE[role][0]
    return template.removeprefix(_LAYER)


def gguf_name(place: Place, *, suffix: str = "") -> str:
    """The GGUF name of the tensor at ``place``; the experts of a layer share one. ``suffix`` as in `ffn_down_t`."""
    template = TABLE[place.role][2]
    stacked = suffix + ("_exps" if place.expert is not None else "")
    if suffix and "{X}" not in template:
        raise ValueError(f"{place.role} takes no suffix")
    return template.format(L=place.layer, X=stacked)


def layer_places(spec: ModelSpec, layer: int) -> list[Place]:
    """The tensors of one decoder layer, in the order in which they are written."""
    places = [Place(role, layer) for role in (*ATTENTION, "ffn_norm")]
    if not spec.experts:
        return places + [Place(role, layer) for role in FFN]
    places.append(Place("router", layer))
    return places + [Place(role, layer, expert) for expert in range(spec.experts) for role in FFN]


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
    return {
        "token_embd": (V, D),
        "output": (V, D),
        "output_norm": (D,),
        "attn_norm": (D,),
        "ffn_norm": (D,),
        "attn_q": (heads_D, D),
        "attn_k": (kv_D, D),
        "attn_v": (kv_D, D),
        "attn_output": (D, heads_D),
        "router": (spec.experts, D),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
    }[place.role]
