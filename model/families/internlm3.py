"""InternLM3: Llama; its rope's dynamic scaling begins beyond its context."""

from dataclasses import replace

from .llama import LLAMA

INTERNLM3 = replace(
    LLAMA,
    name="internlm3",
    module="llama",
    config_prefix="InternLM3",
    since="5.23.0",
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 10240, "num_hidden_layers": 48, "num_key_value_heads": 2, "head_dim": 128,
        "vocab_size": 128512, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
    },
    rope_types=("default", "linear", "llama3", "yarn", "dynamic"),
)  # fmt: skip
