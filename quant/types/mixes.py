"""The named mixes (Q4_K_M, IQ3_XS, ...): which type each tensor gets, the same as llama.cpp's llama-quantize chooses.

Followed is llama_tensor_get_type_impl in llama.cpp's src/llama-quant.cpp (b11739); a peer test compares the whole table
with the library itself. A mix is one type for most matrices, and more bits where errors cost most: the output, attn_v
(whose rows are few under grouped-query attention), ffn_down, and the first and last layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ...common.errors import TsconvertError
from ...model.files.gguf import ggml

# mix -> type of most of its matrices
MIXES = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "Q8_0": "Q8_0", "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0",
    "Q5_1": "Q5_1", "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K", "IQ1_S": "IQ1_S",
    "IQ1_M": "IQ1_M", "IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S",
    "IQ3_XXS": "IQ3_XXS", "IQ3_XS": "IQ3_S", "IQ3_S": "IQ3_S", "IQ3_M": "IQ3_S", "IQ4_NL": "IQ4_NL",
    "IQ4_XS": "IQ4_XS", "TQ1_0": "TQ1_0", "TQ2_0": "TQ2_0", "MXFP4_MOE": "MXFP4",
}  # fmt: skip
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
FLOATS = ("F32", "F16", "BF16")
LOW = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")
_WANT_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
# type -> what rows get whose length its blocks do not divide; F16 where this does not fit either
_FALLBACKS = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "TQ1_0": "Q4_0", "TQ2_0": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ1_S": "IQ4_NL", "IQ1_M": "IQ4_NL", "IQ2_XXS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_S": "IQ4_NL",
    "IQ3_XXS": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Model:
    """The facts of a model that the choice depends on, beside the mix."""

    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    tied: bool = False
    """Whether the embedding is the head as well, so that there is no `output.weight`."""
    importance: bool = False
    """Whether an importance matrix is used."""

    @property
    def queries_per_key(self) -> int:
        """Query heads of one key-value head."""
        return self.heads // self.kv_heads

    @property
    def eight_experts(self) -> bool:
        """Whether the rules for eight experts hold."""
        return self.experts == 8


def mix_named(name: str) -> str:
    """The mix called ``name``, in any case and under llama-quantize's shorter names too.

    Raises:
        TsconvertError: there is none.
    """
    upper = ALIASES.get(name.upper(), name.upper())
    if upper not in MIXES and upper not in ggml.weight_types():
        names = ", ".join([*MIXES, *(kind for kind in ggml.weight_types() if kind not in MIXES)])
        raise TsconvertError(f"{name!r} is no type that weights can have; choose one of {names}")
    return upper


def kind_of(name: str) -> str:
    """The kind of matrix that the rules see in the tensor ``name``; `ffn_down_t`, a transposed down, is an ffn_down."""
    if name in ("output.weight", "token_embd.weight"):
        return name.removesuffix(".weight")
    for kind in ("attn_qkv", "attn_kv_b", "attn_v", "attn_k", "attn_q", "attn_output"):
        if f"{kind}.weight" in name or f"{kind}_t.weight" in name:
            return "attn_v" if kind in ("attn_qkv", "attn_kv_b") else kind
    return next((kind for kind in ("ffn_up", "ffn_gate", "ffn_down") if kind in name), "other")


def is_quantized(name: str, dimensions: int) -> bool:
    """Whether a mix quantizes the tensor: a matrix that is no norm, router, scale of ups or table of positions."""
    kept = ("_norm.weight", "ffn_gate_inp.weight", "ffn_up_scale.weight")
    return dimensions > 1 and name.endswith("weight") and not any(part in name for part in kept)


def choose_type(mix: str, kind: str, columns: int, index: int, model: Model, *, stacked: bool) -> str:
    """The type of a matrix in ``mix``, before `fitting_type`.

    Args:
        kind: `kind_of` its name.
        index: its number among the tensors of its kind, in the order of the layers.
        stacked: it holds several experts.
    """
    base = MIXES.get(mix, mix)
    if base in FLOATS or mix not in MIXES:
        return base
    if kind == "output" or (model.tied and kind == "token_embd"):
        return _output(mix, base, columns)
    if mix == "MXFP4_MOE":
        return "MXFP4" if stacked else "Q8_0"
    rule = (_LOW_RULES if mix in LOW and kind != "token_embd" else _RULES).get(kind)
    return (rule(mix, index, model) if rule is not None else None) or base


def fitting_type(type_name: str, columns: int) -> str:
    """``type_name``, or what rows of ``columns`` get instead because its blocks do not divide them."""
    if columns % ggml.TYPES[type_name].weights == 0:
        return type_name
    other = _FALLBACKS.get(type_name, type_name)
    return other if columns % ggml.TYPES[other].weights == 0 else "F16"


def wants_importance(mix: str, name: str, type_name: str) -> bool:
    """Whether llama.cpp refuses to make the tensor ``name`` a ``type_name`` without an importance matrix."""
    if ggml.needs_importance(type_name):
        return True
    if kind_of(name) in ("output", "token_embd"):
        return False
    return type_name in _WANT_IMPORTANCE or (mix == "Q2_K_S" and type_name == "Q2_K")


def _output(mix: str, base: str, columns: int) -> str:
    if mix == "MXFP4_MOE" or base == "Q8_0" or columns % ggml.TYPES[base].weights:
        return "Q8_0"
    return "Q5_K" if mix in (*LOW, "IQ3_XXS") else "Q6_K"


def _more_bits(i: int, n: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _embedding(mix: str, _i: int, _model: Model) -> str | None:
    two = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS")
    three = ("IQ2_S", "IQ2_M", "IQ3_XXS")
    return "Q2_K" if mix in two else "IQ3_S" if mix in three else "Q4_K" if mix in ("TQ1_0", "TQ2_0") else None


def _value(mix: str, i: int, model: Model) -> str | None:
    if model.eight_experts:
        return "Q8_0"
    found = _value_by_mix(mix, i, model)
    # Llama 2 70B and 3 70B: their attn_v is an eighth of attn_q
    large = model.layers == 80 and model.heads != model.kv_heads
    return "Q5_K" if large and (found or MIXES[mix]) in ("Q3_K", "Q4_K") else found


def _value_by_mix(mix: str, i: int, model: Model) -> str | None:
    wide = model.queries_per_key >= 4
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(i, model.layers) else None
    if wide and mix in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K"
    if wide and mix in ("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"):
        return "Q4_K"
    fixed = {"Q2_K": "Q3_K", "IQ3_M": "Q4_K", "Q3_K_L": "Q5_K"}
    if mix == "IQ3_XXS" and not model.importance:
        return "IQ3_S"
    if mix == "Q3_K_M":
        return "Q5_K" if i < 2 else "Q4_K"
    return "Q5_K" if mix == "Q4_K_S" and i < 4 else fixed.get(mix)


def _key(mix: str, i: int, model: Model) -> str | None:
    return "Q8_0" if model.eight_experts else _query(mix, i, model)


def _query(mix: str, _i: int, _model: Model) -> str | None:
    return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(mix)


def _down(mix: str, i: int, model: Model) -> str | None:
    n, early = model.layers, i < model.layers // 8
    if mix in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more_bits(i, n) else None
    if mix == "Q3_K_M":
        return "Q5_K" if i < n // 16 else "Q4_K"
    if mix == "IQ3_M":
        return "Q4_K" if early or (model.eight_experts and _more_bits(i, n)) else None
    if mix == "IQ3_XXS" and not model.importance:
        return "Q4_K" if early else "Q3_K"
    first = {"Q2_K_S": "Q4_K", "Q4_K_S": "Q5_K"}
    # 32-weight types go wrong on the first down matrices: with importances Q4_0 and Q5_0, the others without
    first |= {"Q4_0": "Q4_1", "Q5_0": "Q5_1"} if model.importance else {"IQ4_NL": "Q5_K", "IQ4_XS": "Q5_K"}
    return (first.get(mix) if early else None) or {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(mix)


def _attention_output(mix: str, _i: int, model: Model) -> str | None:
    if model.eight_experts:
        poor = mix.startswith(("IQ3", "IQ4", "Q2_K", "Q3_K", "Q4_K")) and mix not in ("Q2_K_S", "Q3_K_L")
        return "Q5_K" if poor else None
    return {"Q2_K": "Q3_K", "IQ3_XXS": "IQ3_S", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K", "IQ3_M": "Q4_K"}.get(mix)


def _gate_or_up(mix: str, i: int, model: Model) -> str | None:
    middle = model.layers // 8 <= i < 7 * model.layers // 8
    return "IQ3_XXS" if mix == "IQ3_XS" and middle else None


def _low_value(mix: str, _i: int, model: Model) -> str | None:
    return "Q4_K" if model.queries_per_key >= 4 or model.experts >= 4 else _low_more(mix)


def _low_key(_mix: str, _i: int, model: Model) -> str | None:
    return "Q4_K" if model.eight_experts else None


def _low_down(mix: str, i: int, model: Model) -> str | None:
    return _low_more(mix) if i < model.layers // 8 else None


def _low_attention_output(mix: str, _i: int, model: Model) -> str | None:
    if model.eight_experts:
        return "Q5_K"
    return {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}.get(mix)


def _low_more(mix: str) -> str:
    return "IQ3_S" if mix in ("IQ2_S", "IQ2_M") else "Q2_K"


_Rule = Callable[[str, int, Model], str | None]
_RULES: dict[str, _Rule] = {
    "token_embd": _embedding, "attn_v": _value, "attn_k": _key, "attn_q": _query, "ffn_down": _down,
    "attn_output": _attention_output, "ffn_gate": _gate_or_up, "ffn_up": _gate_or_up,
}  # fmt: skip
_LOW_RULES: dict[str, _Rule] = {
    "attn_v": _low_value, "attn_k": _low_key, "ffn_down": _low_down, "attn_output": _low_attention_output,
}  # fmt: skip
