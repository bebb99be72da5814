"""Training one low-rank predictor, fc2 . relu(fc1 . x) or linear, on the energies of one FFN's neurons.

The loss is that of price.py. Its gradient, (w + price) sigmoid(z) - w, is written out: no graph is kept. Training sees
the weights as they are going to be stored, and the gradient goes to the weights before the rounding as if there were
none (straight through, arXiv 1308.3432).
"""

import math

import torch
from torch import nn

from ...common import processes
from ...common.errors import TsconvertError
from ...common.progress import at
from ...common.schedule import schedule
from ..config import Training
from ..energy import FFN, loss_weights
from ..predictor import Array, Predictor
from ..torch_predictor import as_stored, logits
from .linear_start import closest_linear
from .price import lost_goal, lost_share, price_of_trained, steered

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
_REFERENCE_WIDTH = 128
LATE_RATE = 0.2
"""Share of the learning rate at which a trained predictor learns on."""
_LINEAR_RATE = 0.1  # the same for a linear one from its closed form


class PredictorTrainer:
    """A predictor of ``ffn`` in training.

    Args:
        target_energy: share of the energy that the neurons with a logit of at least 0 are to keep.
        generator: draws the start.
        start: a trained one to go on from, at a fifth of the learning rate; else ReGLU gets a linear one.
    """

    def __init__(
        self, ffn: FFN, rank: int, target_energy: float, how: Training, generator: torch.Generator,
        start: Predictor | None = None,
    ) -> None:  # fmt: skip
        self.ffn, self.how, self.trained_before = ffn, how, start is not None
        self.linear = ffn.layer.activation == "reglu" if start is None else start.linear
        if start is not None:
            self._fc1_RD, self._fc2_FR = (_weights(part, ffn.device) for part in (start.fc1_RD, start.fc2_FR))
        elif self.linear:
            self._fc1_RD, self._fc2_FR = closest_linear(ffn, rank)
        else:
            self._fc1_RD, self._fc2_FR = _random(ffn, rank, generator)
        peak = how.learning_rate * (LATE_RATE if self.trained_before else _LINEAR_RATE if self.linear else 1.0)
        self.peaks = (fc1_rate(peak, ffn.width), peak)
        groups = [{"params": [weight], "lr": 0.0} for weight in (self._fc1_RD, self._fc2_FR)]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.price, self.lost_goal = 1.0, lost_goal(target_energy)
        self.lost: float | None = None
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

    def logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """Of the weights as they are going to be stored, [T, F]."""
        return logits(x_TD, self.fc1_RD, self.fc2_FR, linear=self.linear)

    def predictor(self) -> Predictor:
        """As it is going to be stored; its threshold is 0."""
        fc1_RD, fc2_FR = (part.cpu().numpy() for part in (self.fc1_RD, self.fc2_FR))
        return Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR, linear=self.linear)

    def step(self, x_TD: torch.Tensor, batch_tokens: int, rate: float) -> None:
        """Learn from some inputs what the FFN does with them.

        Args:
            x_TD: those of this process.
            batch_tokens: how many they are in all processes.
            rate: share of the peak learning rate, 0 to 1.
        """
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * rate
        labels = self.ffn.labels(x_TD, autocast=bool(self.how.autocast))
        mean = processes.sums(float(labels.energy_TF.sum()))[0] / (batch_tokens * self.ffn.neurons)
        self.mean_energy = mean if self.mean_energy is None else 0.9 * self.mean_energy + 0.1 * mean
        weight_TF = loss_weights(labels.energy_TF, self.mean_energy, labels.fires_TF, self.how.floor)
        if (self.trained_before or self.linear) and not self.steps:
            z_TF = self.logits(x_TD.float())
            self.price = price_of_trained(z_TF, weight_TF, everywhere=True)
        self._fc1_RD.grad, self._fc2_FR.grad, kept = _gradient(
            x_TD, self.fc1_RD, self.fc2_FR, weight_TF, labels.energy_TF, self.price, batch_tokens,
            bool(self.how.autocast), self.linear,
        )  # fmt: skip
        nn.utils.clip_grad_norm_([self._fc1_RD, self._fc2_FR], 1.0)
        self.optimizer.step()
        self.lost = lost_share(self.lost, kept)
        if self.steps >= self.how.steps // 10:  # before, threshold 0 means nothing yet
            self.price = steered(self.price, self.lost, self.lost_goal)
        self.steps += 1

    def train(self, generator: torch.Generator) -> None:
        """Take all steps that were asked for, on tokens that ``generator`` draws.

        Raises:
            TsconvertError: the weights are no numbers any more.
        """
        ffn, how = self.ffn, self.how
        for step in range(how.steps):
            chosen = torch.randint(ffn.train_tokens, (how.batch_tokens,), generator=generator)
            self.step(ffn.inputs(ffn.own(chosen)), how.batch_tokens, schedule(step, how.steps))
            at(f"predictors' step {step + 1} of {how.steps}")
        self.check()

    def check(self) -> None:
        """Raise if the weights are no numbers any more."""
        if not bool(self._fc1_RD.isfinite().all() and self._fc2_FR.isfinite().all()):
            raise TsconvertError(
                f"layer {self.ffn.layer.index}, expert {self.ffn.expert}: the predictor's weights are no numbers after"
                " training; lower the learning rate"
            )


def fc1_rate(rate: float, width: int) -> float:
    """fc1's learning rate in a model of that width, given that for width 128: it falls with the root of the width."""
    return rate * math.sqrt(_REFERENCE_WIDTH / width)


@torch.no_grad()
def _gradient(
    x_TD: torch.Tensor, fc1_RD: torch.Tensor, fc2_FR: torch.Tensor, weight_TF: torch.Tensor, energy_TF: torch.Tensor,
    price: float, batch_tokens: int, autocast: bool, linear: bool,
) -> tuple[torch.Tensor, torch.Tensor, float]:  # fmt: skip
    """Both gradients, of all processes' parts of a batch; the share of all its energy that threshold 0 keeps."""
    kind = torch.bfloat16 if autocast else torch.float32
    x_TD, narrow_RD, narrow_FR = x_TD.to(kind), fc1_RD.to(kind), fc2_FR.to(kind)
    hidden_TR = x_TD @ narrow_RD.T
    if not linear:
        hidden_TR.relu_()
    z_TF = (hidden_TR @ narrow_FR.T).float()
    whole, kept = processes.sums(float(energy_TF.sum()), float((energy_TF * (z_TF >= 0)).sum()))
    slope_TF = z_TF.sigmoid_().mul_(weight_TF + price).sub_(weight_TF).div_(batch_tokens).to(kind)
    to_fc2_FR = processes.sum_((slope_TF.T @ hidden_TR).float())
    to_hidden_TR = slope_TF @ narrow_FR
    if not linear:
        to_hidden_TR *= hidden_TR > 0
    to_fc1_RD = processes.sum_((to_hidden_TR.T @ x_TD).float())
    return to_fc1_RD, to_fc2_FR, kept / whole if whole else 1.0


def _random(ffn: FFN, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random weights: a start from the best linear map needed 2 to 5 % more neurons (rank 32, 200 steps, one seed)."""
    fc1_RD = torch.randn(rank, ffn.width, generator=generator) / math.sqrt(ffn.width)
    fc2_FR = 0.1 * torch.randn(ffn.neurons, rank, generator=generator) / math.sqrt(rank)
    return fc1_RD.to(ffn.device), fc2_FR.to(ffn.device)


def _weights(array: Array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)
