"""Seed-OSS: Llama with biases on queries, keys and values."""

from dataclasses import replace

from .family import Gguf
from .llama import LLAMA

SEED_OSS = replace(
    LLAMA,
    name="seed_oss",
    class_prefix="SeedOss",
    defaults={
        **LLAMA.defaults,
        "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 80, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 155136, "max_position_embeddings": 524288, "attention_bias": True,
        "attention_out_bias": False,
    },
    biases={
        "attention_bias": ("attn_q", "attn_k", "attn_v"),
        "attention_out_bias": ("attn_output",),
        "mlp_bias": LLAMA.biases["mlp_bias"],
    },
    gguf=Gguf(
        architecture="seed_oss", pairs="half", native=("attn_q", "attn_k", "attn_v", "biases"),
        names={"ffn_norm": "blk.{L}.post_attention_norm.weight"},
    ),
    tiny={"attention_bias": True, "attention_out_bias": False},
)  # fmt: skip
