"""Llama: the layout that the other families vary."""

from .family import LAYER, Family, Gguf

LLAMA = Family(
    name="llama",
    class_prefix="Llama",
    tensors={
        "token_embd": "model.embed_tokens.weight",
        "attn_norm": LAYER + "input_layernorm.weight",
        "attn_q": LAYER + "self_attn.q_proj.weight",
        "attn_k": LAYER + "self_attn.k_proj.weight",
        "attn_v": LAYER + "self_attn.v_proj.weight",
        "attn_output": LAYER + "self_attn.o_proj.weight",
        "ffn_norm": LAYER + "post_attention_layernorm.weight",
        "ffn_gate": LAYER + "mlp.gate_proj.weight",
        "ffn_up": LAYER + "mlp.up_proj.weight",
        "ffn_down": LAYER + "mlp.down_proj.weight",
        "fc1": LAYER + "mlp.predictor.fc1.weight",
        "fc2": LAYER + "mlp.predictor.fc2.weight",
        "output_norm": "model.norm.weight",
        "output": "lm_head.weight",
    },
    defaults={
        "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "vocab_size": 32000,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False,
    },
    nullable=("num_key_value_heads", "head_dim"),
    biases={
        "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
    },
    fixed={"partial_rotary_factor": (None, 1), "is_causal": (True,), "per_layer_config": (None, {})},
    gguf=Gguf(architecture="llama", native=("biases",)),
    tiny={"attention_bias": True, "mlp_bias": True},
)  # fmt: skip
