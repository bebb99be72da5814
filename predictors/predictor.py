"""What says which neurons are going to fire: two small matrices, or sign bits of the model's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError
from .cost import Bits, low_rank_bytes, sign_bytes

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank, M matrices, B bytes a row.
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


@dataclass(frozen=True, kw_only=True)
class SignPredictor:
    """Matching sign bits of the input and a neuron's rows, less those that differ (SparseInfer, arXiv 2411.12692).

    Nothing is trained, only the threshold is calibrated. SparseInfer compares the gate's rows; of a dReLU neuron, which
    needs both factors to be positive, the up row's are compared too and both scores added.
    """

    signs_MFB: npt.NDArray[np.uint8]
    """A set bit is a negative weight: M matrices (gate; up for dReLU), F rows, ceil(D / 8) bytes (numpy.packbits)."""
    width: int
    """D."""
    threshold: float = 0.0
    fired_F: Array | None = None
    rank: int = 0
    parameters: int = 0
    """None that the model does not have."""

    def logits(self, x_TD: Array) -> Array:
        """The scores [T, F] of normed inputs [T, D]; a neuron is predicted to fire where they reach the threshold."""
        bits_MFD = np.unpackbits(self.signs_MFB, axis=-1, count=self.width)
        weight_FD = (1 - 2 * bits_MFD.astype(np.float32)).sum(0)
        return np.asarray(np.sign(x_TD) @ weight_FD.T, np.float32)


AnyPredictor = Predictor | SignPredictor


def sign_predictor(matrices: Sequence[Array]) -> SignPredictor:
    """That of an FFN whose gate rows [F, D], and for dReLU up rows, are ``matrices``."""
    bits = [np.packbits(np.signbit(weight_FD), axis=-1) for weight_FD in matrices]
    return SignPredictor(signs_MFB=np.stack(bits), width=matrices[0].shape[1])


def stored_bytes(predictor: AnyPredictor, bits: Bits) -> float:
    """Bytes that a token reads of it."""
    if isinstance(predictor, SignPredictor):
        return sign_bytes(predictor.signs_MFB.shape[0], predictor.signs_MFB.shape[1], predictor.width)
    return low_rank_bytes(predictor.fc1_RD.shape[1], predictor.fc2_FR.shape[0], predictor.rank, bits)


def arrays(predictor: AnyPredictor) -> dict[str, npt.NDArray[Any]]:
    """Its tensors by name, for a file."""
    if isinstance(predictor, SignPredictor):
        found: dict[str, npt.NDArray[Any]] = {
            "signs": predictor.signs_MFB, "width": np.array([predictor.width], np.int32)
        }  # fmt: skip
    else:
        found = {"fc1.weight": predictor.fc1_RD, "fc2.weight": predictor.fc2_FR}
    return found if predictor.fired_F is None else found | {"fired": predictor.fired_F}


def from_arrays(found: dict[str, npt.NDArray[Any]], threshold: float) -> AnyPredictor:
    """The predictor that `arrays` was given.

    Raises:
        ValueError: tensors are missing, or do not fit each other.
    """
    fired_F = found.get("fired")
    if "signs" in found and "width" in found:
        signs_MFB, known = found["signs"], found["width"]
        width = int(known.reshape(-1)[0]) if known.size and known.dtype.kind in "iu" else 0
        if width < 1 or signs_MFB.ndim != 3 or signs_MFB.dtype != np.uint8 or signs_MFB.shape[2] != -(-width // 8):
            raise ValueError("its sign bits do not fit the width")
        neurons = signs_MFB.shape[1]
        predictor: AnyPredictor = SignPredictor(
            signs_MFB=signs_MFB, width=width, threshold=threshold, fired_F=fired_F
        )  # fmt: skip
    else:
        fc1_RD, fc2_FR = found.get("fc1.weight"), found.get("fc2.weight")
        if fc1_RD is None or fc2_FR is None or fc1_RD.ndim != 2 or fc2_FR.shape[1:] != fc1_RD.shape[:1]:
            raise ValueError("fc1 and fc2 are missing or do not fit each other")
        if not (fc1_RD.size and fc2_FR.size) or {fc1_RD.dtype.kind, fc2_FR.dtype.kind} != {"f"}:
            raise ValueError("fc1 and fc2 are empty or hold no floats")
        neurons = fc2_FR.shape[0]
        fc1_RD, fc2_FR = fc1_RD.astype(np.float32, copy=False), fc2_FR.astype(np.float32, copy=False)
        predictor = Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR, threshold=threshold, fired_F=fired_F)
    if fired_F is not None and fired_F.shape != (neurons,):
        raise ValueError("its counts of firing do not fit it")
    return predictor
