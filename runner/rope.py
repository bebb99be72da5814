"""Rotary position embedding: the angles of every position, with linear, llama3 and YaRN scaling.

Computed once when a model is loaded; the step only looks cosines and sines up.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Shape suffixes: P positions, H half of the rotated dimensions.


@dataclass(frozen=True, kw_only=True)
class Rope:
    """How positions turn into angles."""

    base: float = 10000.0
    dimensions: int
    """Rotated dimensions of each head, the first ones; even."""
    scaling: str = "none"
    """`none`, `linear` or `yarn`; llama3's scaling comes as ``divisors_H``."""
    factor: float = 1.0
    """How many times longer the context is than the original one."""
    original_context: int = 0
    """Tokens, for YaRN."""
    attention_factor: float = 1.0
    """Multiplies cosines and sines, with YaRN beside its own 0.1 ln(factor) + 1."""
    beta_fast: float = 32.0
    """YaRN leaves dimensions alone that turn more often than this over the original context."""
    beta_slow: float = 1.0
    """YaRN interpolates dimensions fully that turn less often than this."""
    divisors_H: npt.NDArray[np.float32] | None = None
    """Divides each frequency (the tensor rope_freqs.weight)."""
    stride: int = 1
    """How far tokens are apart; more than 1 tries far positions with few tokens."""


def angles(rope: Rope, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines [P, H] of the first ``positions`` tokens."""
    half = rope.dimensions // 2
    frequency_H = rope.base ** (-np.arange(half, dtype=np.float64) / half)
    scale = rope.attention_factor
    if rope.divisors_H is not None:
        frequency_H = frequency_H / rope.divisors_H[:half]
    if rope.scaling == "linear":
        frequency_H = frequency_H / rope.factor
    elif rope.scaling == "yarn":
        frequency_H = _yarn(rope, frequency_H)
        scale *= 0.1 * math.log(max(rope.factor, 1.0)) + 1.0
    angle_PH = rope.stride * np.arange(positions, dtype=np.float64)[:, None] * frequency_H[None, :]
    return (np.cos(angle_PH) * scale).astype(np.float32), (np.sin(angle_PH) * scale).astype(np.float32)


def _yarn(rope: Rope, frequency_H: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """YaRN (arXiv 2309.00071): slow dimensions are interpolated, fast ones left, with a ramp between."""
    half = len(frequency_H)

    def dimension(rotations: float) -> float:
        return half * math.log(rope.original_context / (rotations * 2 * math.pi)) / math.log(rope.base)

    low, high = math.floor(dimension(rope.beta_fast)), math.ceil(dimension(rope.beta_slow))
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp_H = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
    return np.asarray(frequency_H / rope.factor * ramp_H + frequency_H * (1 - ramp_H), np.float64)
