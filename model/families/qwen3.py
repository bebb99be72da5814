"""Qwen3: Llama with a norm of each head's queries and keys."""

from dataclasses import replace

from .family import LAYER, Gguf
from .llama import LLAMA
from .qwen2 import QWEN2

HEAD_NORMS = {"attn_q_norm": LAYER + "self_attn.q_norm.weight", "attn_k_norm": LAYER + "self_attn.k_norm.weight"}

QWEN3 = replace(
    QWEN2,
    name="qwen3",
    class_prefix="Qwen3",
    tensors={**LLAMA.tensors, **HEAD_NORMS},
    defaults={**QWEN2.defaults, "head_dim": 128, "attention_bias": False},
    biases={"attention_bias": LLAMA.biases["attention_bias"]},
    features={"qk_norm": "head"},
    gguf=Gguf(architecture="qwen3", pairs="half"),
)
