"""Helium: Llama whose rope turns adjacent rows."""

from dataclasses import replace

from .llama import LLAMA

HELIUM = replace(
    LLAMA,
    name="helium",
    class_prefix="Helium",
    defaults={
        **LLAMA.defaults,
        "hidden_size": 2560, "intermediate_size": 7040, "num_hidden_layers": 24, "num_attention_heads": 20,
        "num_key_value_heads": 20, "head_dim": 128, "vocab_size": 48000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8, "rope_theta": 100000.0,
    },
    nullable=(),
    biases={"attention_bias": ("attn_q", "attn_k", "attn_v"), "mlp_bias": LLAMA.biases["mlp_bias"]},
    adjacent_pairs=True,
)  # fmt: skip
