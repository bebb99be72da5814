"""A predictor, as a file holds it: two small matrices that say which neurons are going to fire."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
Array = npt.NDArray[np.float32]
_NAMES = {False: ("fc1.weight", "fc2.weight"), True: ("linear1.weight", "linear2.weight")}
"""Of a predictor's tensors; a linear one's are others, so that no version takes it for a ReLU network."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """fc2 . relu(fc1 . x) >= threshold says that a neuron fires; x is the FFN's input after its norm.

    A ``linear`` one is fc2 . fc1 . x: under ReGLU a neuron fires by its gate alone, which is linear.

    Shapes (R rank, D model width, F neurons): ``fc1_RD``, ``fc2_FR``, both float32.
    """

    fc1_RD: Array
    fc2_FR: Array
    threshold: float = 0.0
    linear: bool = False
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
        hidden_TR = x_TD @ self.fc1_RD.T
        if not self.linear:
            hidden_TR = np.maximum(hidden_TR, 0)
        return np.asarray(hidden_TR @ self.fc2_FR.T, np.float32)

    def folded(self, norm_D: Array) -> "Predictor":
        """The predictor of the input before the norm, whose weight is ``norm_D``.

        Without biases a predictor is positively homogeneous and RMSNorm scales each token by a positive number, so the
        signs of the logits stay the same; a threshold other than 0 does not carry over.

        Raises:
            TsconvertError: the threshold is not 0.
        """
        if self.threshold:
            raise TsconvertError(
                f"a predictor with threshold {self.threshold:g} cannot take the input before the norm; set it to 0"
            )
        return replace(self, fc1_RD=self.fc1_RD * norm_D[None, :])

    def with_relu(self) -> "Predictor":
        """The same logits by a ReLU network, of twice the rank where this one is linear: h = relu(h) - relu(-h)."""
        if not self.linear:
            return self
        fc1_RD, fc2_FR = np.concatenate([self.fc1_RD, -self.fc1_RD]), np.concatenate([self.fc2_FR, -self.fc2_FR], 1)
        return replace(self, fc1_RD=fc1_RD, fc2_FR=fc2_FR, linear=False)

    def arrays(self) -> dict[str, Array]:
        """Its tensors by name, for a file."""
        names = _NAMES[self.linear]
        found = {names[0]: self.fc1_RD, names[1]: self.fc2_FR}
        return found if self.fired_F is None else found | {"fired": self.fired_F}

    @classmethod
    def from_arrays(cls, found: dict[str, npt.NDArray[Any]], threshold: float) -> "Predictor":
        """The predictor with these `arrays`.

        Raises:
            ValueError: tensors are missing, or do not fit each other.
        """
        if "signs" in found:
            raise ValueError("it holds sign bits, which no version since 0.1 uses")
        linear = _NAMES[True][0] in found
        fc1_RD, fc2_FR, fired_F = (found.get(name) for name in (*_NAMES[linear], "fired"))
        if fc1_RD is None or fc2_FR is None or fc1_RD.ndim != 2 or fc2_FR.shape[1:] != fc1_RD.shape[:1]:
            raise ValueError("fc1 and fc2 are missing or do not fit each other")
        if not (fc1_RD.size and fc2_FR.size) or {fc1_RD.dtype.kind, fc2_FR.dtype.kind} != {"f"}:
            raise ValueError("fc1 and fc2 are empty or hold no floats")
        if fired_F is not None and fired_F.shape != fc2_FR.shape[:1]:
            raise ValueError("its counts of firing do not fit it")
        fc1_RD, fc2_FR = (weight.astype(np.float32, copy=False) for weight in (fc1_RD, fc2_FR))
        return cls(fc1_RD=fc1_RD, fc2_FR=fc2_FR, threshold=threshold, linear=linear, fired_F=fired_F)
