"""How wide a predictor is: what a budget allows, and the search for the width that reads the fewest bytes."""

from collections.abc import Callable, Iterator

from ..convert.errors import TsconvertError
from ..convert.spec import ModelSpec
from .calibrate import FFNReport
from .folder import Predictor

STEP = 32
"""Ranks of the search are multiples of this: the block length of GGUF's quantized types."""
Trial = tuple[Predictor, FFNReport]


class Budget:
    """Weights that predictors may have, handed out layer by layer: what one layer leaves is shared by those after it.

    Args:
        spec: the model.
        share: of the model's parameters; None is no limit.
    """

    def __init__(self, spec: ModelSpec, share: float | None) -> None:
        self.spec = spec
        self.left = None if share is None else share * spec.parameters
        self.ffns = spec.layers * spec.ffns
        self.each = spec.width + spec.neurons  # weights that one more rank costs

    def cap(self) -> int | None:
        """The highest rank of the next FFN."""
        return None if self.left is None else int(self.left / max(1, self.ffns) / self.each)

    def spend(self, rank: int) -> None:
        """Book the rank that the next FFN took, 0 for none."""
        self.ffns -= 1
        if self.left is not None:
            self.left -= rank * self.each

    def check(self, rank: int) -> None:
        """Refuse a fixed rank that cannot be paid for."""
        cap = self.cap()
        if cap is not None and rank > cap:
            share = rank * self.each * self.ffns / self.spec.parameters
            raise TsconvertError(
                f"--rank {rank}: predictors of {share:.1%} of the model's parameters, over the --budget; choose"
                f" --rank {cap} or less, or a larger --budget"
            )


def candidates(width: int, cap: int | None) -> Iterator[int]:
    """Ranks to try, in rising order: 32, 64, 96, 128, then in steps of half a doubling, up to the width or the cap."""
    rank = STEP
    while rank <= width and (cap is None or rank <= cap):
        yield rank
        rank += STEP * max(1, 1 << max(0, (rank // (2 * STEP)).bit_length() - 1))


def search(ranks: Iterator[int], attempt: Callable[[int], Trial], max_density: float | None) -> Trial | None:
    """The trial with the fewest bytes among those within ``max_density``; the search ends when a wider one reads more.

    Every trial keeps the energy asked for, because its threshold is calibrated so; what differs is how many neurons it
    must predict for that.

    Returns:
        None where there is no rank to try. Where none is within ``max_density``, the one that comes closest.
    """
    best: Trial | None = None
    for rank in ranks:
        trial = attempt(rank)
        if best is not None and not _better(trial[1], best[1], max_density):
            break
        best = trial
    return best


def _better(one: FFNReport, other: FFNReport, max_density: float | None) -> bool:
    if max_density is not None and other.predicted_density > max_density:
        return one.predicted_density < other.predicted_density
    return one.bytes_predicted < other.bytes_predicted
