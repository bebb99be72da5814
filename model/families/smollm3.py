"""SmolLM3: Llama without rope in every fourth layer."""

from dataclasses import replace

from .family import Config, Gguf
from .llama import LLAMA


def no_rope_layers(config: Config) -> tuple[int, ...]:
    """The layers for which `no_rope_layers` has 0, or without that key every fourth."""
    layers, step = range(config["num_hidden_layers"]), config["no_rope_layer_interval"]
    given = config["no_rope_layers"] or [int((layer + 1) % step != 0) for layer in layers]
    return tuple(layer for layer in layers if not given[layer])


SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    class_prefix="SmolLM3",
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if key != "head_dim"},
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 4,
        "vocab_size": 128256, "max_position_embeddings": 32768, "rope_theta": 2e6, "tie_word_embeddings": True,
        "use_sliding_window": False, "sliding_window": None, "layer_types": None,
        "no_rope_layers": None, "no_rope_layer_interval": 4,
    },
    nullable=("num_key_value_heads", "sliding_window", "layer_types", "no_rope_layers"),
    windows=lambda config: [layer in no_rope_layers(config) for layer in range(config["num_hidden_layers"])],
    features={"no_rope_layers": no_rope_layers},
    gguf=Gguf(
        architecture="smollm3", fixed=lambda spec: {"no_rope_layers": tuple(range(3, spec.layers, 4))}
    ),
    tiny={"num_hidden_layers": 5, "pad_token_id": 0},
)  # fmt: skip
