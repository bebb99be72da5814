"""Mixtral: Mistral with a router and experts."""

from dataclasses import replace

from .family import LAYER
from .mistral import MISTRAL

_EXPERT = LAYER + "block_sparse_moe.experts.{E}."

MIXTRAL = replace(
    MISTRAL,
    name="mixtral",
    class_prefix="Mixtral",
    sparse_aliases=(),
    tensors={
        **MISTRAL.tensors,
        "router": LAYER + "block_sparse_moe.gate.weight",
        "ffn_gate": _EXPERT + "w1.weight",
        "ffn_up": _EXPERT + "w3.weight",
        "ffn_down": _EXPERT + "w2.weight",
        "fc1": _EXPERT + "predictor.fc1.weight",
        "fc2": _EXPERT + "predictor.fc2.weight",
    },
    renamed={"router": LAYER + "mlp.gate.weight"},
    stacked={
        LAYER + "mlp.experts.gate_up_proj": ("ffn_gate", "ffn_up"),
        LAYER + "mlp.experts.down_proj": ("ffn_down",),
    },
    defaults={
        **MISTRAL.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    tiny={"num_local_experts": 4, "num_experts_per_tok": 2},
)
