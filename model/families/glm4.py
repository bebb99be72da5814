"""GLM-4 (0414): norms on both sides, gate and up in one matrix, a rope of adjacent pairs in half of each head."""

from dataclasses import replace

from .family import LAYER, Gguf
from .llama import LLAMA

GLM4 = replace(
    LLAMA,
    name="glm4",
    class_prefix="Glm4",
    tensors={
        **LLAMA.tensors,
        "attn_post_norm": LAYER + "post_self_attn_layernorm.weight",
        "ffn_post_norm": LAYER + "post_mlp_layernorm.weight",
    },
    fused={LAYER + "mlp.gate_up_proj.weight": ("ffn_gate", "ffn_up")},
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key != "mlp_bias"},
        "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2, "head_dim": 128,
        "vocab_size": 151552, "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7,
        "partial_rotary_factor": 0.5, "attention_bias": True,
    },
    nullable=(),
    biases={"attention_bias": ("attn_q", "attn_k", "attn_v")},
    fixed={key: values for key, values in LLAMA.fixed.items() if key != "partial_rotary_factor"},
    adjacent_pairs=True,
    gguf=Gguf(
        architecture="glm4", native=("biases", "rope_dim"), fused={"blk.{L}.ffn_up.weight": ("ffn_gate", "ffn_up")}
    ),
    tiny={"attention_bias": True, "pad_token_id": 0},
)  # fmt: skip
