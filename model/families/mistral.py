"""Mistral: Llama with a sliding window."""

from dataclasses import replace

from .llama import LLAMA

MISTRAL = replace(
    LLAMA,
    name="mistral",
    class_prefix="Mistral",
    sparse_aliases=("bamboo",),  # TurboSparse-Mistral and Bamboo-base as their authors released them
    sliding_window=True,
)
