"""Training one low-rank predictor: fc2 . relu(fc1 . x) against the energies of one FFN's neurons.

Predicting a neuron costs the same bytes whether it fires or not; leaving it out loses its energy e. So a neuron should
be predicted where E[e | x] exceeds a price, and threshold 0 is made to mean that: for each neuron's logit z the loss is

    w softplus(-z) + price softplus(z),    w = e / mean(e) + floor * (it fires)

which is least where sigmoid(z) = E[w] / (E[w] + price). The price is steered during training so that what threshold 0
predicts keeps the energy asked for. Its gradient, (w + price) sigmoid(z) - w, is written out: no graph is kept.
"""

import math

import torch
from torch import nn

from ..common import processes
from ..common.errors import TsconvertError
from ..common.progress import at
from ..common.schedule import schedule
from .config import Training
from .energy import FFN, Labels
from .scores import logits
from .stored import as_stored

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
_REFERENCE_WIDTH = 128
LATE_RATE = 0.2
"""Of the learning rate, where a trained predictor learns on."""


class LowRank:
    """A predictor of ``ffn`` in training.

    Args:
        target_energy: share of the energy that the neurons with a logit of at least 0 are to keep.
        generator: draws the start.
        start: fc1 [R, D] and fc2 [F, R] of a trained one to go on from, at a fifth of the learning rate.
    """

    def __init__(
        self, ffn: FFN, rank: int, target_energy: float, how: Training, generator: torch.Generator,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.ffn, self.how, self.begun = ffn, how, start is not None
        self._fc1_RD, self._fc2_FR = _start(ffn, rank, generator) if start is None else start
        peak = how.learning_rate * (LATE_RATE if self.begun else 1.0)
        self.peaks = (fc1_rate(peak, ffn.width), peak)
        groups = [{"params": [weight], "lr": 0.0} for weight in (self._fc1_RD, self._fc2_FR)]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.price = _Price(target_energy, how.steps)
        self.mean_energy: float | None = None
        self.steps = 0

    @property
    def fc1_RD(self) -> torch.Tensor:
        """As it is going to be stored."""
        return as_stored(self._fc1_RD, self.how.stored_as)

    @property
    def fc2_FR(self) -> torch.Tensor:
        """As it is going to be stored."""
        return as_stored(self._fc2_FR, self.how.stored_as)

    def rate(self, step: int) -> float:
        """Of the learning rate, 0 to 1: a short rise, then a cosine down to 0 at the last of the steps."""
        return schedule(step, self.how.steps)

    def step(self, x_TD: torch.Tensor, batch_tokens: int, rate: float, labels: Labels | None = None) -> None:
        """Learn from some inputs.

        Args:
            x_TD: those of this process.
            batch_tokens: how many they are in all processes.
            rate: of the learning rate, 0 to 1.
            labels: what is to be foreseen; None is what the FFN does with these inputs.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        labels = labels or self.ffn.labels(x_TD)
        mean = processes.sums(float(labels.energy_TF.sum()))[0] / (batch_tokens * self.ffn.neurons)
        self.mean_energy = mean if self.mean_energy is None else 0.9 * self.mean_energy + 0.1 * mean
        weight_TF = labels.energy_TF / max(self.mean_energy, 1e-30) + self.how.floor * labels.fires_TF
        if self.begun and not self.steps:
            z_TF = logits(x_TD.float(), self.fc1_RD, self.fc2_FR)
            self.price.value = trained_price(z_TF, weight_TF, everywhere=True)
        self._fc1_RD.grad, self._fc2_FR.grad, kept = _gradient(
            x_TD, self.fc1_RD, self.fc2_FR, weight_TF, labels.energy_TF, self.price.value, batch_tokens,
            bool(self.how.autocast),
        )  # fmt: skip
        nn.utils.clip_grad_norm_([self._fc1_RD, self._fc2_FR], 1.0)
        self.optimizer.step()
        self.price.steer(self.steps, kept)
        self.steps += 1

    def train(self, generator: torch.Generator) -> None:
        """All steps that were asked for, on tokens that ``generator`` draws.

        Raises:
            TsconvertError: the weights are no numbers any more.
        """
        ffn, how = self.ffn, self.how
        for step in range(how.steps):
            chosen = torch.randint(ffn.train_tokens, (how.batch_tokens,), generator=generator)
            self.step(ffn.inputs(ffn.own(chosen)), how.batch_tokens, self.rate(step))
            at(f"predictors' step {step + 1} of {how.steps}")
        self.check()

    def check(self) -> None:
        """Raise if the weights are no numbers any more."""
        if not bool(self._fc1_RD.isfinite().all() and self._fc2_FR.isfinite().all()):
            raise TsconvertError(
                f"layer {self.ffn.layer.index}, expert {self.ffn.expert}: the predictor's weights are no numbers after"
                " training; lower the learning rate"
            )


def train_low_rank(
    ffn: FFN, rank: int, target_energy: float, how: Training, generator: torch.Generator,
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Train a predictor of ``ffn`` on its training tokens, the arguments being `LowRank`'s.

    Returns:
        fc1 [R, D], fc2 [F, R], float32.

    Raises:
        TsconvertError: the weights are no numbers any more.
    """
    predictor = LowRank(ffn, rank, target_energy, how, generator, start)
    predictor.train(generator)
    return predictor.fc1_RD, predictor.fc2_FR


def fc1_rate(rate: float, width: int) -> float:
    """fc1's learning rate in a model of that width, given that for width 128: it falls with the root of the width."""
    return rate * math.sqrt(_REFERENCE_WIDTH / width)


@torch.no_grad()
def trained_price(z_TF: torch.Tensor, weight_TF: torch.Tensor, *, everywhere: bool = False) -> float:
    """The price that a trained predictor was trained with: its loss has no slope along all logits together.

    Args:
        z_TF: its logits.
        everywhere: of those of all processes, each of which then has to ask.
    """
    rate_TF = z_TF.sigmoid()
    parts = float((weight_TF * (1 - rate_TF)).sum()), float(rate_TF.sum())
    short, named = processes.sums(*parts) if everywhere else parts
    return short / max(1e-6, named)


@torch.no_grad()
def _gradient(
    x_TD: torch.Tensor, fc1_RD: torch.Tensor, fc2_FR: torch.Tensor, weight_TF: torch.Tensor, energy_TF: torch.Tensor,
    price: float, batch_tokens: int, autocast: bool,
) -> tuple[torch.Tensor, torch.Tensor, float]:  # fmt: skip
    """Both gradients, of all processes' parts of a batch; the share of all its energy that threshold 0 keeps."""
    kind = torch.bfloat16 if autocast else torch.float32
    x_TD, narrow_RD, narrow_FR = x_TD.to(kind), fc1_RD.to(kind), fc2_FR.to(kind)
    hidden_TR = (x_TD @ narrow_RD.T).relu_()
    z_TF = (hidden_TR @ narrow_FR.T).float()
    whole, kept = processes.sums(float(energy_TF.sum()), float((energy_TF * (z_TF >= 0)).sum()))
    slope_TF = z_TF.sigmoid_().mul_(weight_TF + price).sub_(weight_TF).div_(batch_tokens).to(kind)
    to_fc2_FR = processes.sum_((slope_TF.T @ hidden_TR).float())
    to_fc1_RD = processes.sum_((((slope_TF @ narrow_FR) * (hidden_TR > 0)).T @ x_TD).float())
    return to_fc1_RD, to_fc2_FR, kept / whole if whole else 1.0


class _Price:
    """What predicting a neuron costs, in units of the mean energy: steered until threshold 0 keeps the share asked."""

    def __init__(self, target_energy: float, steps: int) -> None:
        self.value = 1.0
        self.lost_goal = max(1e-4, 1 - target_energy)
        self.first = steps // 10
        self.lost: float | None = None

    def steer(self, step: int, kept: float) -> None:
        """After each step, with the share of energy that threshold 0 kept in it."""
        self.lost = 1 - kept if self.lost is None else 0.8 * self.lost + 0.2 * (1 - kept)
        if step >= self.first:
            excess = math.log(max(1e-6, self.lost) / self.lost_goal)
            self.value = min(1e4, max(1e-6, self.value * math.exp(-0.1 * max(-1.0, min(1.0, excess)))))


def _start(ffn: FFN, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights: a start from the best linear map needed 2 to 5 % more neurons (rank 32, 200 steps, one seed)."""
    fc1_RD = torch.randn(rank, ffn.width, generator=generator) / math.sqrt(ffn.width)
    fc2_FR = 0.1 * torch.randn(ffn.neurons, rank, generator=generator) / math.sqrt(rank)
    return fc1_RD.to(ffn.device), fc2_FR.to(ffn.device)
