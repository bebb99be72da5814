"""What share of the neurons was read, predicted and fired, by the runner's own count, and how many bytes that is."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..model.spec import THRESHOLDED, ModelSpec
from ..model.tensor_names import PREDICTOR
from .files.model_file import ModelFile

Shares = npt.NDArray[np.float64]
_SPARSE_ROLES = {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}


@dataclass(frozen=True, kw_only=True)
class Density:
    """Means over tokens, one entry a layer: shares (0 to 1) of the neurons of the FFNs that ran."""

    tokens: int
    gate: Shares
    """Neurons whose gate row was read."""
    up: Shares
    down: Shares
    fired: Shares
    """Neurons that were computed and came out other than zero."""
    predicted: Shares
    """Neurons that the predictor named; 0 where none ran."""
    missed: Shares
    """Neurons that fired without being predicted; 0 unless the model's ``audit`` was on."""
    attended: Shares
    """Of attention's outputs, those whose rows of `attn_output_t` were read; 0 where the matrix is not transposed."""

    @classmethod
    def of(cls, counts: npt.NDArray[Any], tokens: int, spec: ModelSpec) -> "Density":
        """From the kernels' counters (records COUNTS [N, L]) over ``tokens`` tokens."""
        whole = max(1, tokens) * spec.neurons * max(1, spec.experts_per_token)
        shares = {name: counts[name].sum(axis=0) / whole for name in counts.dtype.names or ()}
        shares["attended"] *= whole / (max(1, tokens) * spec.heads * spec.head_dim)
        if spec.activation in THRESHOLDED:  # the kernels look at up first
            shares["gate"], shares["up"] = shares["up"], shares["gate"]
        return cls(tokens=tokens, **shares)

    @property
    def recall(self) -> Shares:
        """Share of the firing neurons that was predicted, per layer; known only if ``audit`` was on."""
        firing = self.fired + self.missed
        return np.divide(self.fired, firing, out=np.ones_like(firing), where=firing > 0)

    @property
    def read(self) -> float:
        """The share of all FFN rows (gate, up and down) that was read."""
        return float((self.gate + self.up + self.down).mean() / 3)

    def __str__(self) -> str:
        text = f"rows read {self.read:.1%}, fired {self.fired.mean():.1%}"
        if self.predicted.any():
            text += f", predicted {self.predicted.mean():.1%}"
        if self.missed.any():
            text += f", recall {self.recall.mean():.1%}"
        return text

    def by_layer(self) -> list[str]:
        """A line a layer."""
        lines = []
        for i in range(len(self.fired)):
            line = f"  layer {i:>3}: fired {self.fired[i]:6.1%}"
            if self.predicted.any():
                line += f", predicted {self.predicted[i]:6.1%}"
            if self.missed.any():
                line += f", recall {self.recall[i]:6.1%}"
            lines.append(f"{line}, rows read {(self.gate[i] + self.up[i] + self.down[i]) / 3:6.1%}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Per layer and overall, for `--json`."""
        layers = {
            name: [round(float(value), 5) for value in getattr(self, name)]
            for name in ("gate", "up", "down", "fired", "predicted", "missed")
        }
        means = {f"mean_{name}": round(float(np.mean(values)), 5) for name, values in layers.items()}
        return {"tokens": self.tokens, "rows_read": round(self.read, 5), **means, "layers": layers}


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
        elif role == "attn_output" and source.attention_share is not None and layer is not None:
            total += tensor.size_bytes * float(density.attended[layer])
        elif role in PREDICTOR:
            total += tensor.size_bytes * used if mode == "predicted" else 0
        else:
            total += tensor.size_bytes
    return total
