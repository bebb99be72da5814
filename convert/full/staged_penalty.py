"""ProSparse's penalty: its weight rises in stages along a sine (arXiv 2402.13516, section 3.2), steered by nothing."""

import math

# Its stages for a 7B model: ends, as shares of all steps, and the weight there as a share of the last one.
_STAGES = ((0.30, 0.0), (0.36, 0.025), (0.61, 0.25), (0.73, 0.25), (0.97, 1.0), (1.0, 1.0))


class StagedPenalty:
    """`SparsityPenalty`'s interface with a weight that follows the steps alone.

    Args:
        target_sparsity: what a model is judged by; the weight does not heed it.
        steps: of the training.
        peak: the last stage's weight.
    """

    def __init__(self, target_sparsity: float | None, steps: int, peak: float) -> None:
        self.goal = None if target_sparsity is None else 1 - target_sparsity
        self.steps, self.peak = steps, peak
        self.weight = 0.0
        self.density: float | None = None

    def steer(self, step: int, fired: float) -> None:
        """After each step: the weight of the next one; between two stages half a sine joins their weights."""
        self.density = fired if self.density is None else 0.7 * self.density + 0.3 * fired
        share = (step + 1) / self.steps
        start, low = 0.0, 0.0
        for end, high in _STAGES:
            if share <= end:
                rise = 0.5 * (1 + math.sin(math.pi * ((share - start) / (end - start) - 0.5)))
                self.weight = self.peak * (low + (high - low) * rise)
                return
            start, low = end, high
        self.weight = self.peak
