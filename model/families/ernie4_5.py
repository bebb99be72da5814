"""Ernie 4.5, the dense ones: Llama whose rope turns adjacent rows."""

from dataclasses import replace

from .llama import LLAMA

ERNIE4_5 = replace(
    LLAMA,
    name="ernie4_5",
    class_prefix="Ernie4_5",
    defaults={
        **{key: value for key, value in LLAMA.defaults.items() if not key.endswith("_bias")},
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 103424, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "use_bias": False,
    },
    biases={"use_bias": (*LLAMA.biases["attention_bias"], *LLAMA.biases["mlp_bias"])},
    adjacent_pairs=True,
    tiny={"use_bias": True, "tie_word_embeddings": False},
)  # fmt: skip
