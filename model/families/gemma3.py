"""Gemma 3's language model: Gemma 2 with head norms in place of soft caps, and a rope of its own in windows."""

from dataclasses import replace
from math import sqrt

from .family import Config, Gguf
from .gemma import GEMMA
from .gemma2 import GEMMA2
from .qwen3 import HEAD_NORMS


def windows(config: Config) -> list[bool]:
    """All but every sixth layer."""
    pattern = config["sliding_window_pattern"]
    return [(layer + 1) % pattern != 0 for layer in range(config["num_hidden_layers"])]


GEMMA3 = replace(
    GEMMA2,
    name="gemma3_text",
    class_prefix="Gemma3",
    module="gemma3",
    tensors={**GEMMA2.tensors, **HEAD_NORMS},
    defaults={
        **GEMMA2.defaults, "vocab_size": 262208, "max_position_embeddings": 131072, "rope_theta": 1e6,
        "final_logit_softcapping": None, "attn_logit_softcapping": None, "sliding_window_pattern": 6,
    },
    local_rope_theta=10000.0,
    windows=windows,
    # transformers' class takes `attn_logit_softcapping` and leaves it unused
    features={**GEMMA2.features, "qk_norm": "head", "attention_softcap": 0.0},
    gguf=Gguf(
        architecture="gemma3", pairs="half", native=("embedding_scale", "windows", "local_rope_theta"),
        fixed=lambda spec: {
            **GEMMA.gguf.fixed(spec), "full_layers": tuple(range(5, spec.layers, 6)),
            "attention_scale": 1 / sqrt(spec.width / spec.heads if spec.layers == 62 else spec.head_dim),
        },
    ),
    tiny={
        "sliding_window": 24, "query_pre_attn_scalar": 16, "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
)  # fmt: skip
