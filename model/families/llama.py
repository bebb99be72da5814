"""Llama: the layout that the other families vary."""

from .family import Family

LAYER = "model.layers.{L}."

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
    renamed={},
    stacked={},
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    sliding_window=False,
)
