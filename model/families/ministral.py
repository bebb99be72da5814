"""Ministral (8B 2410): Mistral whose layers may differ in having the window."""

from dataclasses import replace

from .mistral import MISTRAL

MINISTRAL = replace(
    MISTRAL,
    name="ministral",
    class_prefix="Ministral",
    sparse_aliases=(),
    defaults={**MISTRAL.defaults, "layer_types": None},
    nullable=("head_dim", "sliding_window", "layer_types"),
    tiny={"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
)
