"""A predictor, as a file holds it: two small matrices that say which neurons are going to fire."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """fc2 . relu(fc1 . x) >= threshold says that a neuron fires; x is the FFN's input after its norm.

    Shapes (R rank, D model width, F neurons): ``fc1_RD``, ``fc2_FR``, both float32.
    """

    fc1_RD: Array
    fc2_FR: Array
    threshold: float = 0.0
    fired_F: Array | None = None
    """How often each neuron fired on the calibration tokens, if that was counted."""

    @property
    def rank(self) -> int:
        """R, the rows of fc1."""
        return int(self.fc1_RD.shape[0])

    @property
    def parameters(self) -> int:
        """Weights that it adds to the model."""
        return self.fc1_RD.size + self.fc2_FR.size

    def logits(self, x_TD: Array) -> Array:
        """The logits [T, F] of normed inputs [T, D]; a neuron is predicted to fire where they reach the threshold."""
        hidden_TR = np.maximum(x_TD @ self.fc1_RD.T, 0)
        return np.asarray(hidden_TR @ self.fc2_FR.T, np.float32)

    def folded(self, norm_D: Array) -> "Predictor":
        """The predictor of the input before the norm, whose weight is ``norm_D``.

        A bias-free ReLU network is positively homogeneous and RMSNorm scales each token by a positive number, so the
        signs of the logits stay the same; a threshold other than 0 does not carry over.

        Raises:
            TsconvertError: the threshold is not 0.
        """
        if self.threshold:
            raise TsconvertError(
                f"a predictor with threshold {self.threshold:g} cannot take the input before the norm; set it to 0"
            )
        return Predictor(fc1_RD=self.fc1_RD * norm_D[None, :], fc2_FR=self.fc2_FR)

    def arrays(self) -> dict[str, Array]:
        """Its tensors by name, for a file."""
        found = {"fc1.weight": self.fc1_RD, "fc2.weight": self.fc2_FR}
        return found if self.fired_F is None else found | {"fired": self.fired_F}

    @classmethod
    def from_arrays(cls, found: dict[str, npt.NDArray[Any]], threshold: float) -> "Predictor":
        """The predictor with these `arrays`.

        Raises:
            ValueError: tensors are missing, or do not fit each other.
        """
        if "signs" in found:
            raise ValueError("it holds sign bits, which no version since 0.1 uses")
        fc1_RD, fc2_FR, fired_F = (found.get(name) for name in ("fc1.weight", "fc2.weight", "fired"))
        if fc1_RD is None or fc2_FR is None or fc1_RD.ndim != 2 or fc2_FR.shape[1:] != fc1_RD.shape[:1]:
            raise ValueError("fc1 and fc2 are missing or do not fit each other")
        if not (fc1_RD.size and fc2_FR.size) or {fc1_RD.dtype.kind, fc2_FR.dtype.kind} != {"f"}:
            raise ValueError("fc1 and fc2 are empty or hold no floats")
        if fired_F is not None and fired_F.shape != fc2_FR.shape[:1]:
            raise ValueError("its counts of firing do not fit it")
        fc1_RD, fc2_FR = (weight.astype(np.float32, copy=False) for weight in (fc1_RD, fc2_FR))
        return cls(fc1_RD=fc1_RD, fc2_FR=fc2_FR, threshold=threshold, fired_F=fired_F)
