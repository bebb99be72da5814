"""Gemma 2: Gemma with norms on both sides, soft caps, and a window in every second layer."""

from dataclasses import replace
from math import sqrt

from .family import LAYER, Config, Gguf
from .gemma import GEMMA

BOTH_NORMS = {
    "attn_post_norm": LAYER + "post_attention_layernorm.weight",
    "ffn_norm": LAYER + "pre_feedforward_layernorm.weight",
    "ffn_post_norm": LAYER + "post_feedforward_layernorm.weight",
}


def windows(config: Config) -> list[bool]:
    """The first layer, the third and so on."""
    return [layer % 2 == 0 for layer in range(config["num_hidden_layers"])]


GEMMA2 = replace(
    GEMMA,
    name="gemma2",
    class_prefix="Gemma2",
    tensors={**GEMMA.tensors, **BOTH_NORMS},
    defaults={
        **{key: value for key, value in GEMMA.defaults.items() if key != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
        "sliding_window": 4096, "layer_types": None, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    },
    nullable=("sliding_window", "layer_types", "final_logit_softcapping", "attn_logit_softcapping"),
    keys={"hidden_act": "hidden_activation"},
    windows=windows,
    features={
        **GEMMA.features,
        "attention_scale": lambda config: 1 / sqrt(config["query_pre_attn_scalar"]),
        "attention_softcap": lambda config: float(config["attn_logit_softcapping"] or 0),
        "logit_softcap": lambda config: float(config["final_logit_softcapping"] or 0),
    },
    gguf=Gguf(
        architecture="gemma2", pairs="half",
        native=("embedding_scale", "attention_softcap", "logit_softcap", "windows"),
        fixed=lambda spec: {
            **GEMMA.gguf.fixed(spec), "full_layers": tuple(range(1, spec.layers, 2)),
            "attention_scale": 1 / sqrt(spec.width / spec.heads if spec.layers == 46 else spec.head_dim),
        },
    ),
    tiny={"sliding_window": 24, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0},
)  # fmt: skip
