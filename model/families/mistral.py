"""Mistral: Llama with a sliding window."""

from dataclasses import replace

from .llama import LLAMA

MISTRAL = replace(
    LLAMA,
    name="mistral",
    class_prefix="Mistral",
    sparse_aliases=("bamboo",),  # TurboSparse-Mistral and Bamboo-base as their authors released them
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    nullable=("head_dim", "sliding_window"),
)
