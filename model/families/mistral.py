"""Mistral (also Nemo and Small): Llama without biases, with a sliding window."""

from dataclasses import replace

from .llama import LLAMA

_BIASES = ("attention_bias", "mlp_bias")

MISTRAL = replace(
    LLAMA,
    name="mistral",
    class_prefix="Mistral",
    sparse_aliases=("bamboo",),  # TurboSparse-Mistral and Bamboo-base as their authors released them
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key not in _BIASES},
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    nullable=("head_dim", "sliding_window"),
    biases={},
    fixed={**LLAMA.fixed, **dict.fromkeys(_BIASES, (False, None))},
    tiny={"sliding_window": 24},
)
