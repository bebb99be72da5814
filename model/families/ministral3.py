"""Ministral 3: Mistral with YaRN and queries that grow with the position."""

from dataclasses import replace

from .family import Gguf
from .mistral import MISTRAL

_ROPE = {
    "type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "max_position_embeddings": 262144, "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}  # fmt: skip

MINISTRAL3 = replace(
    MISTRAL,
    name="ministral3",
    class_prefix="Ministral3",
    sparse_aliases=(),
    defaults={
        **MISTRAL.defaults,
        "num_hidden_layers": 34, "head_dim": 128, "vocab_size": 131072, "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "rope_parameters": _ROPE,
    },
    temperature=True,
    gguf=Gguf(architecture="mistral3", native=("attention_temperature",)),
    tiny={
        "sliding_window": None,
        "rope_parameters": {**_ROPE, "factor": 8.0, "original_max_position_embeddings": 32},
    },
)  # fmt: skip
