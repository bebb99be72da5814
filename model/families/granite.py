"""Granite: Llama with multipliers, which all fold into weights."""

from dataclasses import replace

from .family import Gguf
from .llama import LLAMA

GRANITE = replace(
    LLAMA,
    name="granite",
    class_prefix="Granite",
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key != "head_dim"},
        "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "attention_multiplier": 1.0, "logits_scaling": 1.0,
    },
    nullable=("num_key_value_heads",),
    features={
        "embedding_scale": lambda config: float(config["embedding_multiplier"]),
        "residual_scale": lambda config: float(config["residual_multiplier"]),
        "attention_scale": lambda config: float(config["attention_multiplier"]),
        "logit_scale": lambda config: 1 / config["logits_scaling"],
    },
    gguf=Gguf(
        architecture="granite",
        native=("biases", "embedding_scale", "residual_scale", "attention_scale", "logit_scale"),
    ),
    tiny={
        "attention_bias": True, "mlp_bias": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22,
        "attention_multiplier": 0.1, "logits_scaling": 8.0, "tie_word_embeddings": True,
    },
)  # fmt: skip
