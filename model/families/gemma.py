"""Gemma 1: GeGLU, a scaled embedding, norms by 1 + w."""

from dataclasses import replace
from math import sqrt

from .family import Gguf
from .llama import LLAMA

GEMMA = replace(
    LLAMA,
    name="gemma",
    class_prefix="Gemma",
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key != "mlp_bias"},
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "vocab_size": 256000,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    nullable=(),
    biases={"attention_bias": LLAMA.biases["attention_bias"]},
    fixed={**LLAMA.fixed, "use_bidirectional_attention": (None, False)},
    activations={"gelu_pytorch_tanh": "geglu", "gelu": "geglu"},  # old configs say gelu and mean its tanh
    features={"norm_offset": 1.0, "embedding_scale": lambda config: sqrt(config["hidden_size"])},
    gguf=Gguf(
        architecture="gemma", pairs="half", native=("embedding_scale",),
        fixed=lambda spec: {"activation": "geglu", "embedding_scale": sqrt(spec.width), "tied": True},
    ),
    tiny={},
)  # fmt: skip
