"""The sparsity penalty of recovery: L1 on the activations, its weight steered towards the density asked for."""

import math

_RAMP = 0.6  # share of the steps after which the wanted density is reached
_GAIN, _DAMPING = 0.2, 3.0  # of the controller


class SparsityPenalty:
    """L1 on h_j |down_j|, its weight steered so that the density follows a ramp down to the one asked for.

    Args:
        target_sparsity: share of neurons to be silent, 0 to 1; None is no penalty.
        steps: of the training.
    """

    def __init__(self, target_sparsity: float | None, steps: int) -> None:
        self.goal = None if target_sparsity is None else 1 - target_sparsity
        self.steps = steps
        self.weight = 0.0 if self.goal is None else 1e-3
        self.start: float | None = None
        self.density: float | None = None
        self.scale: float | None = None
        self.error = 0.0

    def factor(self, l1: float) -> float:
        """What the batch's ``l1`` is to be multiplied by in the loss; the first one seen is its unit."""
        if self.scale is None:
            self.scale = max(l1, 1e-12)
        return self.weight / self.scale

    def steer(self, step: int, fired: float) -> None:
        """After each step, with the share of neurons that fired in it: a controller on the logarithm of the weight."""
        if self.goal is None:
            return
        self.density = fired if self.density is None else 0.7 * self.density + 0.3 * fired
        self.start = max(fired, self.goal) if self.start is None else self.start
        ramp = min(1.0, step / (_RAMP * self.steps))
        wanted = self.start * (self.goal / self.start) ** ramp
        error = math.log(max(self.density, 1e-6) / wanted)
        change = _GAIN * error + _DAMPING * (error - self.error)
        self.error = error
        self.weight = min(1e3, max(1e-5, self.weight * math.exp(max(-0.7, min(0.7, change)))))
