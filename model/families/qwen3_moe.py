"""Qwen3-MoE: Qwen3 with a router and experts."""

from dataclasses import replace

from .family import LAYER, Gguf
from .qwen3 import QWEN3

_EXPERT = LAYER + "mlp.experts.{E}."

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_moe",
    class_prefix="Qwen3Moe",
    tensors={
        **QWEN3.tensors,
        "router": LAYER + "mlp.gate.weight",
        "ffn_gate": _EXPERT + "gate_proj.weight",
        "ffn_up": _EXPERT + "up_proj.weight",
        "ffn_down": _EXPERT + "down_proj.weight",
        "fc1": _EXPERT + "predictor.fc1.weight",
        "fc2": _EXPERT + "predictor.fc2.weight",
    },
    stacked={
        LAYER + "mlp.experts.gate_up_proj": ("ffn_gate", "ffn_up"),
        LAYER + "mlp.experts.down_proj": ("ffn_down",),
    },
    defaults={
        **{key: value for key, value in QWEN3.defaults.items() if key not in ("layer_types", "max_window_layers")},
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 24,
        "num_key_value_heads": 4, "head_dim": None, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    nullable=("num_key_value_heads", "sliding_window", "head_dim"),
    keys={"intermediate_size": "moe_intermediate_size", "num_local_experts": "num_experts"},
    fixed={**QWEN3.fixed, "decoder_sparse_step": (1,), "mlp_only_layers": ([], None), "layer_types": (None,)},
    windows=None,
    features={"qk_norm": "head", "router_normalized": lambda config: bool(config["norm_topk_prob"])},
    gguf=Gguf(architecture="qwen3moe", pairs="half"),
    tiny={"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True, "moe_intermediate_size": 96},
)  # fmt: skip
