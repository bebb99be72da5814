"""What brings recovery to the density asked for: a threshold that follows it, or a penalty that is steered.

The density goes down a ramp, from what it is to what was asked for.
"""

import math
from typing import Any

import numpy as np
import torch

from ..common import processes
from ..model.spec import THRESHOLDED

# Shape suffixes: T tokens, F neurons.
_RAMP = 0.6  # share of the steps after which the wanted density is reached
_GAIN, _DAMPING = 0.2, 3.0  # of the controller
_BEND = 0.5  # of the mean activation that fires: where firing costs half of its price
_SAMPLE = 50_000  # factors that a quantile is taken of
_FRESH = 0.2  # weight of the newest step's quantile


def _wanted(start: float, goal: float, passed: float) -> float:
    """The density of the ramp from ``start`` to ``goal`` when so much of the training has passed, 0 to 1."""
    return float(start * (goal / start) ** min(1.0, passed / _RAMP))


class FFNThresholds:
    """The thresholds of a layer's FFN as they follow the density: relu's, or the two of `tswiglu`.

    Under `tswiglu` a neuron fires if its activation is among the largest of those whose up is among the largest.

    Args:
        ffn: has `threshold` and `up_threshold`, which are set; without an `up_threshold` at first there will be none.
        activation: the FFN's.
        target_sparsity: share of neurons to be silent, 0 to 1.
        up_passes: share of neurons whose up lets them fire, under `tswiglu`; 1 is all, without an `up_threshold`.
    """

    def __init__(self, ffn: Any, activation: str, target_sparsity: float, up_passes: float) -> None:
        self.ffn = ffn
        self.own = DensityThreshold(target_sparsity, ffn.threshold)
        self.by_up = activation in THRESHOLDED and up_passes < 1 and ffn.up_threshold > 0
        self.up = DensityThreshold(1 - up_passes, ffn.up_threshold)

    def follow(self, step: int, passed: float, factor_TF: torch.Tensor, up_size_TF: torch.Tensor) -> None:
        """Set the thresholds for ``step``, by what they are held against, of some tokens of this process.

        Args:
            passed: share of the training that has, 0 to 1.
            factor_TF: `modeling_turbosparse.factors`.
            up_size_TF: `modeling_turbosparse.up_sizes`.
        """
        if self.by_up:
            self.ffn.up_threshold = self.up.follow(step, passed, up_size_TF)
        if self.ffn.up_threshold:
            factor_TF = factor_TF * (up_size_TF > self.ffn.up_threshold)
        self.ffn.threshold = self.own.follow(step, passed, factor_TF)

    def state(self) -> list[dict[str, Any]]:
        """What a resumed run needs."""
        return [vars(self.own), vars(self.up)]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go back to what `state` gave."""
        for each, found in zip((self.own, self.up), state, strict=True):
            vars(each).update(found)


class DensityThreshold:
    """The threshold of relu (FATReLU, arXiv 2402.13516) that follows a quantile, so that the density follows the ramp.

    Nothing is shrunk: neurons above it keep values and gradients, and those below get none, so the layer learns with
    the activations that it is going to have. A model that is as sparse as asked for is so from the first step on.

    Args:
        target_sparsity: share of neurons to be silent, 0 to 1.
        value: the threshold that the layer has.
    """

    def __init__(self, target_sparsity: float, value: float = 0.0) -> None:
        self.goal, self.value = 1 - target_sparsity, value
        self.start: float | None = None

    def follow(self, step: int, passed: float, factor_TF: torch.Tensor) -> float:
        """The threshold for ``step``.

        Args:
            passed: share of the training that has, 0 to 1.
            factor_TF: what relu's threshold is held against, of some tokens of this process: the smaller of gate and
                up, under ReGLU the gate.
        """
        flat = _sample(factor_TF, step)
        fired, seen = processes.sums(float((flat > self.value).sum()), len(flat))
        if not seen:
            return self.value
        if self.start is None:
            self.start = max(fired / seen, self.goal)
        wanted = _wanted(self.start, self.goal, passed)
        newest = _mean_quantile(flat, 1 - wanted)
        self.value = (1 - _FRESH) * self.value + _FRESH * newest if self.value else newest
        return self.value


def quantile(factor_TF: torch.Tensor, share: float) -> float:
    """The threshold that silences ``share`` of the neurons: the mean of the processes' own."""
    return _mean_quantile(_sample(factor_TF, 0), share)


def _sample(factor_TF: torch.Tensor, seed: int) -> torch.Tensor:
    flat = factor_TF.flatten()
    if len(flat) > _SAMPLE:
        chosen = torch.randint(len(flat), (_SAMPLE,), generator=torch.Generator().manual_seed(seed))
        flat = flat[chosen.to(flat.device)]
    return flat.float()


def _mean_quantile(flat: torch.Tensor, share: float) -> float:
    own = max(0.0, float(np.quantile(flat.cpu().numpy(), share))) if len(flat) else 0.0
    total, parts = processes.sums(own * len(flat), len(flat))
    return total / max(1.0, parts)


class SparsityPenalty:
    """A price on each activation's size z = h_j |down_j|, its weight steered so that the density follows the ramp.

    Args:
        target_sparsity: share of neurons to be silent, 0 to 1; None is no penalty.
        counts: the price is `count`'s, not z itself (L1).
    """

    def __init__(self, target_sparsity: float | None, *, counts: bool = False) -> None:
        self.goal = None if target_sparsity is None else 1 - target_sparsity
        self.counts = counts
        self.weight = 0.0 if self.goal is None else 1e-3
        self.start: float | None = None
        self.density: float | None = None
        self.scale: float | None = None
        self.bend: float | None = None
        self.error = 0.0

    def price(self, size_TF: torch.Tensor) -> torch.Tensor:
        """The price of each activation."""
        if not self.counts:
            return size_TF
        if self.bend is None:
            self.bend = bend(size_TF.detach())
        return count(size_TF, self.bend)

    def factor(self, price: float) -> float:
        """What the batch's ``price`` is to be multiplied by in the loss; the first one seen is its unit."""
        if self.scale is None:
            self.scale = max(price, 1e-12)
        return self.weight / self.scale

    def steer(self, passed: float, fired: float) -> None:
        """After each step: a controller on the logarithm of the weight.

        Args:
            passed: share of the training that has, 0 to 1.
            fired: share of neurons that did in this step.
        """
        if self.goal is None:
            return
        self.density = fired if self.density is None else 0.7 * self.density + 0.3 * fired
        self.start = max(fired, self.goal) if self.start is None else self.start
        wanted = _wanted(self.start, self.goal, passed)
        error = math.log(max(self.density, 1e-6) / wanted)
        change = _GAIN * error + _DAMPING * (error - self.error)
        self.error = error
        self.weight = min(1e3, max(1e-5, self.weight * math.exp(max(-0.7, min(0.7, change)))))


def bend(size_TF: torch.Tensor) -> float:
    """The e of `count` for activations of these sizes."""
    return _BEND * max(1e-12, float(size_TF.sum(dtype=torch.float32) / (size_TF > 0).sum().clamp_min(1)))


def count(size_TF: torch.Tensor, e: float) -> torch.Tensor:
    """The price of firing, z / (z + e): nearly 1 for all but small activations, and those alone it pulls down.

    L1 shrinks the large ones as well, which are to stay (sparse autoencoders found the same, arXiv 2407.14435).
    """
    return size_TF / (size_TF + e)
