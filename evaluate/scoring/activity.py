"""What a model's neurons did while it was scored: counts per corpus, layer and FFN, and the shares made of them."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Shape suffixes: C corpora, L layers, E FFNs that are told apart (the experts, or one).
Counts = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class Activity:
    """Counts [C, L, E] of neurons times tokens; all zero for SwiGLU, whose neurons are never zero."""

    seen_CLE: Counts
    fired_CLE: Counts
    """Came out other than zero; in predicted mode also those that were not predicted."""
    predicted_CLE: Counts
    hit_CLE: Counts
    """Fired and were predicted."""
    tokens_CLE: Counts = field(default_factory=lambda: np.zeros((1, 1, 1)))
    """Tokens that reached the FFN."""

    @classmethod
    def empty(cls, corpora: int, layers: int, ffns: int) -> "Activity":
        """Nothing seen yet."""
        return cls(**{f"{name}_CLE": np.zeros((corpora, layers, ffns)) for name in _NAMES})

    @property
    def predicts(self) -> bool:
        """Predictors ran."""
        return bool(self.predicted_CLE.any())

    def density(self, corpus: int | None = None) -> list[float]:
        """Share of the neurons that fire, per layer; empty for SwiGLU."""
        return self._layers(self.fired_CLE, self.seen_CLE, corpus) if self.seen_CLE.any() else []

    def predicted_density(self, corpus: int | None = None) -> list[float]:
        """Share of the neurons that the predictors name, per layer; empty without predictors."""
        return self._layers(self.predicted_CLE, self.seen_CLE, corpus) if self.predicts else []

    def recall(self, corpus: int | None = None) -> list[float]:
        """Share of the firing neurons that was predicted, per layer; empty without predictors."""
        return self._layers(self.hit_CLE, self.fired_CLE, corpus, none=1.0) if self.predicts else []

    def experts(self) -> list[list[float]]:
        """Density per layer and expert; empty unless experts were told apart."""
        if self.seen_CLE.shape[2] == 1 or not self.seen_CLE.any():
            return []
        return [[float(share) for share in row] for row in _share(self.fired_CLE.sum(0), self.seen_CLE.sum(0))]

    def expert_tokens(self) -> list[list[float]]:
        """Share of a layer's routed tokens that each expert saw; empty unless experts were told apart."""
        tokens_LE = self.tokens_CLE.sum(0)
        if tokens_LE.shape[1] == 1 or not tokens_LE.any():
            return []
        return [[float(share) for share in row / row.sum()] for row in tokens_LE]

    @staticmethod
    def _layers(part_CLE: Counts, whole_CLE: Counts, corpus: int | None, none: float = 0.0) -> list[float]:
        corpora = slice(None) if corpus is None else slice(corpus, corpus + 1)
        shares_L: list[float] = _share(part_CLE[corpora].sum((0, 2)), whole_CLE[corpora].sum((0, 2)), none).tolist()
        return shares_L


_NAMES = ("seen", "fired", "predicted", "hit", "tokens")


def _share(part: Counts, whole: Counts, none: float = 0.0) -> Counts:
    return np.divide(part, whole, out=np.full_like(part, none), where=whole > 0)
