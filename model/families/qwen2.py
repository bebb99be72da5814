"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from dataclasses import replace

from .family import Config, Gguf
from .llama import LLAMA
from .mistral import MISTRAL


def windows(config: Config) -> list[bool]:
    """Layers from `max_window_layers` on."""
    return [layer >= config["max_window_layers"] for layer in range(config["num_hidden_layers"])]


QWEN2 = replace(
    LLAMA,
    name="qwen2",
    class_prefix="Qwen2",
    defaults={
        **{key: value for key, value in MISTRAL.defaults.items() if key != "head_dim"},
        "intermediate_size": 22016, "num_key_value_heads": 32, "vocab_size": 151936, "max_position_embeddings": 32768,
        "use_sliding_window": False, "max_window_layers": 28, "layer_types": None,
    },
    nullable=("num_key_value_heads", "sliding_window", "layer_types"),
    biases={},
    windows=windows,
    features={"biases": ("attn_q", "attn_k", "attn_v")},
    gguf=Gguf(architecture="qwen2", pairs="half", native=("biases",)),
    tiny={"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2},
)  # fmt: skip
