"""Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up in another; LongRoPE."""

from dataclasses import replace

from .family import LAYER, Gguf
from .llama import LLAMA
from .mistral import MISTRAL

PHI3 = replace(
    MISTRAL,
    name="phi3",
    class_prefix="Phi3",
    sparse_aliases=(),
    fused={
        LAYER + "self_attn.qkv_proj.weight": ("attn_q", "attn_k", "attn_v"),
        LAYER + "mlp.gate_up_proj.weight": ("ffn_gate", "ffn_up"),
    },
    defaults={
        **{key: value for key, value in MISTRAL.defaults.items() if key != "head_dim"},
        "hidden_size": 3072, "intermediate_size": 8192, "num_key_value_heads": None, "vocab_size": 32064,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "sliding_window": None, "partial_rotary_factor": 1.0,
    },
    nullable=("num_key_value_heads", "sliding_window"),
    fixed={key: values for key, values in LLAMA.fixed.items() if key != "partial_rotary_factor"},
    rope_types=("default", "longrope"),
    rope_aliases={"su": "longrope", "yarn": "longrope"},
    gguf=Gguf(
        architecture="phi3", pairs="half", native=("rope_dim",),
        fused={
            "blk.{L}.attn_qkv.weight": ("attn_q", "attn_k", "attn_v"),
            "blk.{L}.ffn_up.weight": ("ffn_gate", "ffn_up"),
        },
    ),
    tiny={
        "partial_rotary_factor": 0.75, "original_max_position_embeddings": 32, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0, 6.0, 8.0],
        },
    },
)  # fmt: skip
