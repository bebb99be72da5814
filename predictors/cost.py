"""What a predictor costs and saves: the bytes that one token reads.

At one token a time a model is bound by the memory's bandwidth, so bytes read are time. For one FFN, with D the model
width, F its neurons, R the predictor's rank, a row being the D weights of one neuron in one of the three matrices:

    exact      F gate rows, an up row where the gate is positive, a down row where the neuron fires
    predicted  fc1 and fc2, R (D + F) weights; a gate row where a neuron is predicted; of those an up row where the gate
               is positive, and a down row where the neuron fires

That is what the runner reads in its two modes. Attention, embeddings and norms, the same in both, are left out.
"""

from dataclasses import dataclass

from ..common.errors import TsconvertError
from ..model.spec import ModelSpec

STEP = 32
"""Ranks are multiples of this: the block length of GGUF's quantized types."""
_SIZE_SHARE = 0.04  # of the model's parameters, for a rank that is neither given nor searched for
STORED_BITS = {"Q4_0": 4.5, "Q8_0": 8.5, "F16": 16.0}
"""Bits a weight of the types that predictors are stored in, scales included. Ternary and 2-bit ones of more rank do as
well for the same bytes and no better (docs/benchmarks/predictor_bytes_2cores_2026-11-28.md)."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of one FFN's neurons, means over tokens, 0 to 1."""

    gate: float
    """Gate positive."""
    fired: float
    """Activation not zero."""
    predicted: float = 1.0
    predicted_gate: float = 0.0
    """Predicted, and gate positive."""
    hit: float = 0.0
    """Predicted, and activation not zero."""


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Stored size of one weight, in bits, scales included: F16 16, Q8_0 8.5, Q4_0 4.5."""

    model: float = 16.0
    predictor: float = 16.0
    """Where `STEP` divides its rows; others are F16."""

    def of_predictor(self, columns: int) -> float:
        """Of a weight of a predictor's matrix with so many columns."""
        return self.predictor if columns % STEP == 0 else 16.0


def exact_bytes(width: int, neurons: int, rates: Rates, bits: Bits) -> float:
    """Bytes that a token reads in one FFN without a predictor."""
    return (1 + rates.gate + rates.fired) * neurons * width * bits.model / 8


def low_rank_bytes(width: int, neurons: int, rank: int, bits: Bits) -> float:
    """Bytes of fc1 [R, D] and fc2 [F, R], all of which every token reads."""
    return rank * (width * bits.of_predictor(width) + neurons * bits.of_predictor(rank)) / 8


def predicted_bytes(width: int, neurons: int, predictor: float, rates: Rates, bits: Bits) -> float:
    """Bytes that a token reads in one FFN with a predictor of ``predictor`` bytes.

    Example:
        >>> rates = Rates(gate=0.4, fired=0.1, predicted=0.15, predicted_gate=0.14, hit=0.095)
        >>> read = predicted_bytes(4096, 14336, low_rank_bytes(4096, 14336, 512, Bits()), rates, Bits())
        >>> saved = read / exact_bytes(4096, 14336, rates, Bits())
        >>> round(saved, 2)
        0.36
    """
    rows = rates.predicted + rates.predicted_gate + rates.hit
    return predictor + rows * neurons * width * bits.model / 8


def check_rank(spec: ModelSpec, rank: int | None) -> None:
    """Refuse a rank that no FFN is wide enough for."""
    widest = max(spec.width, spec.neurons)
    if rank is not None and rank > widest:
        raise TsconvertError(
            f"--rank {rank}: the FFNs are {spec.width} wide, of {spec.neurons} neurons; give at most {widest}"
        )


def default_rank(spec: ModelSpec) -> int:
    """The one rank for all FFNs at which predictors have 4 % of the model's parameters, as a multiple of 32."""
    each = spec.layers * spec.ffns * (spec.width + spec.neurons)
    return max(STEP, int(_SIZE_SHARE * spec.parameters / each) // STEP * STEP)
