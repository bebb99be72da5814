"""OLMo 2: norms of the halves' outputs, and of all queries and keys together."""

from dataclasses import replace

from .family import Gguf
from .gemma2 import BOTH_NORMS
from .llama import LLAMA
from .qwen3 import HEAD_NORMS

_PRE = ("attn_norm", "ffn_norm")

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    class_prefix="Olmo2",
    tensors={
        role: name for role, name in {**LLAMA.tensors, **BOTH_NORMS, **HEAD_NORMS}.items() if role not in _PRE
    },
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key not in ("head_dim", "mlp_bias")},
        "vocab_size": 50304, "rms_norm_eps": 1e-5,
    },
    nullable=("num_key_value_heads",),
    biases={"attention_bias": LLAMA.biases["attention_bias"]},
    features={"qk_norm": "whole"},
    gguf=Gguf(architecture="olmo2", pairs="half"),
    tiny={},
)  # fmt: skip
