"""What predicting a neuron costs in the predictors' loss, steered so that threshold 0 keeps the energy asked for.

Predicting a neuron costs the same bytes whether it fires or not; leaving it out loses its energy. So a neuron should
be predicted where its expected energy exceeds a price, and threshold 0 is made to mean that: for each logit z the loss
is, with energy.py's weight w,

    w softplus(-z) + price softplus(z)

which is least where sigmoid(z) = E[w] / (E[w] + price). The price is in units of the mean energy.
"""

import math

import torch

from ...common import processes

# Shape suffixes: T tokens, F neurons.
SMOOTHING = 0.1
"""Share of the latest step in the running mean of the energy that is lost."""
GAIN = 0.03
"""Change of the price's logarithm in a step at which e times as much energy is lost as may be."""
_LIMITS = (1e-6, 1e4)


def lost_goal(target_energy: float) -> float:
    """The share of the energy that may be lost when ``target_energy`` of it is to be kept."""
    return max(1e-4, 1 - target_energy)


def lost_share(before: float | None, kept: float) -> float:
    """The running mean of the share of the energy that is lost, after a step that kept ``kept`` of it.

    Args:
        before: the mean before the step; None at the first one.
    """
    return 1 - kept if before is None else (1 - SMOOTHING) * before + SMOOTHING * (1 - kept)


def steered(price: float, lost: float, goal: float) -> float:
    """The next price: lower where more energy is ``lost`` than the ``goal`` allows, both shares of all energy."""
    excess = max(-1.0, min(1.0, math.log(max(1e-6, lost) / goal)))
    return min(_LIMITS[1], max(_LIMITS[0], price * math.exp(-GAIN * excess)))


@torch.no_grad()
def price_of_trained(z_TF: torch.Tensor, weight_TF: torch.Tensor, *, everywhere: bool = False) -> float:
    """The price that a trained predictor was trained with: its loss has no slope along all logits together.

    Args:
        z_TF: its logits.
        weight_TF: the weights w of the loss.
        everywhere: use the logits of all processes; each of them then has to call this.
    """
    rate_TF = z_TF.sigmoid()
    parts = float((weight_TF * (1 - rate_TF)).sum()), float(rate_TF.sum())
    short, named = processes.sums(*parts) if everywhere else parts
    return short / max(1e-6, named)
