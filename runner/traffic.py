"""How many bytes of weights a token reads, by the runner's own count of rows."""

from ..model.tensor_names import PREDICTOR
from .density import Density
from .dialects import ModelFile

_SPARSE_ROLES = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}


def weight_bytes(source: ModelFile, density: Density, mode: str) -> float:
    """Bytes of weights that a token reads on average; its keys and values, and one row of the embedding, left out.

    Args:
        density: which rows were read, as counted in ``mode``.
        mode: `dense`, `exact` or `predicted`.
    """
    spec, total = source.spec, 0.0
    used = spec.experts_per_token / spec.experts if spec.experts else 1.0
    for (role, layer), tensor in source.tensors.items():
        if role == "token_embd":
            total += tensor.size_bytes if spec.tied else 0
        elif role in _SPARSE_ROLES and layer is not None:
            total += tensor.size_bytes * used * float(getattr(density, _SPARSE_ROLES[role])[layer])
        elif role in PREDICTOR:
            total += tensor.size_bytes * used if mode == "predicted" else 0
        else:
            total += tensor.size_bytes
    return total
