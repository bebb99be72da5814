"""GLM-4 (9B, 2024): GLM-4 (0414) without norms of outputs."""

from dataclasses import replace

from .family import Gguf
from .glm4 import GLM4

GLM = replace(
    GLM4,
    name="glm",
    class_prefix="Glm",
    tensors={role: name for role, name in GLM4.tensors.items() if not role.endswith("post_norm")},
    gguf=Gguf(
        architecture="chatglm", native=("biases", "rope_dim"), fused={"blk.{L}.ffn_up.weight": ("ffn_gate", "ffn_up")}
    ),
)
