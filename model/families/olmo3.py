"""OLMo 3: OLMo 2 with a window, without scaled rope, in three of four layers."""

from dataclasses import replace

from .family import Config, Gguf
from .olmo2 import OLMO2


def windows(config: Config) -> list[bool]:
    """All but every fourth layer."""
    return [(layer + 1) % 4 != 0 for layer in range(config["num_hidden_layers"])]


OLMO3 = replace(
    OLMO2,
    name="olmo3",
    class_prefix="Olmo3",
    since="5.13.0",  # before, the rope of layers with a window was scaled as well
    defaults={**OLMO2.defaults, "rope_theta": 500000.0, "sliding_window": 4096, "layer_types": None},
    nullable=(*OLMO2.nullable, "sliding_window", "layer_types"),
    local_rope_theta=500000.0,
    windows=windows,
    gguf=Gguf(
        architecture="olmo2", pairs="half", native=("windows", "local_rope_theta"),
        fixed=lambda spec: {"full_layers": tuple(range(3, spec.layers, 4))},
    ),
    tiny={"sliding_window": 24, "num_hidden_layers": 5},
)  # fmt: skip
