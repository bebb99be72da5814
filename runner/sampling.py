"""Choosing the next token from logits, as llama.cpp's users know it.

The order is llama.cpp's: repeat penalty, top-k, top-p, min-p, temperature, then a draw. Shape suffix: V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int = 40
    """Only the so many likeliest tokens; 0 or -1 for all."""
    top_p: float = 0.95
    """Only the likeliest tokens whose probabilities first sum to this; 1 for all."""
    min_p: float = 0.05
    """Only tokens at least this likely relative to the likeliest; 0 for all."""
    repeat_penalty: float = 1.0
    """Logits of the last ``repeat_last`` tokens are divided (negative ones multiplied) by this; 1 for none."""
    repeat_last: int = 64
    """Tokens; -1 for all."""
    seed: int | None = None
    """None and -1 draw anew every time."""

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0.0, 100.0), "top_k": (-1, 10**9), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
            "repeat_penalty": (0.01, 100.0), "repeat_last": (-1, 10**9),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be {low:g} to {high:g}")
        if self.seed is not None and self.seed < -1:
            raise TsconvertError(f"seed is {self.seed}: it must be at least 0, or -1 for another draw every time")


class Sampler:
    """Draws tokens; with a seed, the same ones for the same logits."""

    def __init__(self, config: Sampling) -> None:
        self.config = config
        self._random = np.random.default_rng(None if config.seed == -1 else config.seed)

    def choose(self, logits_V: Floats, history: Sequence[int] = ()) -> int:
        """The next token.

        Args:
            logits_V: [V], left as they are.
            history: the tokens so far, for the repeat penalty.
        """
        config = self.config
        if not np.isfinite(logits_V.max()):
            raise TsconvertError(
                "the logits are NaN or infinite: the file's weights are damaged or too large for their type; export the"
                " model again with --type F32"
            )
        recent = history if config.repeat_last < 0 else history[max(0, len(history) - config.repeat_last) :]
        logits_V = penalized(logits_V, recent, config.repeat_penalty)
        if config.temperature == 0:
            return int(np.argmax(logits_V))
        tokens, probability = candidates(logits_V, config)
        drawn = np.searchsorted(np.cumsum(probability), self._random.random(), "right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])


def penalized(logits_V: Floats, recent: Sequence[int], penalty: float) -> Floats:
    """Logits with those of ``recent`` tokens made less likely (CTRL, arXiv 1909.05858)."""
    if penalty == 1.0 or not len(recent):
        return logits_V
    logits_V = logits_V.copy()
    tokens = np.unique(np.asarray(recent, np.int64))
    values = logits_V[tokens]
    logits_V[tokens] = np.where(values > 0, values / penalty, values * penalty)
    return logits_V


def candidates(logits_V: Floats, config: Sampling) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The tokens that top-k, top-p and min-p leave, likeliest first, and their probabilities at the temperature."""
    keep = min(config.top_k if config.top_k > 0 else len(logits_V), len(logits_V))
    tokens = np.argpartition(-logits_V, keep - 1)[:keep] if keep < len(logits_V) else np.arange(keep)
    tokens = tokens[np.lexsort((tokens, -logits_V[tokens]))]
    values = logits_V[tokens].astype(np.float64)
    probability = np.exp(values - values[0])
    probability /= probability.sum()
    within = np.cumsum(probability) - probability < config.top_p
    within &= probability >= config.min_p * probability[0]
    within[0] = True
    tokens, values = tokens[within], values[within]
    probability = np.exp((values - values[0]) / config.temperature)
    return tokens, probability / probability.sum()
