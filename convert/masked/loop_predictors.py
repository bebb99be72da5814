"""Predictors in the loop of full recovery: the whole model learns under their mask, and they learn on.

They come from the joint local stage (joint.py). Of each batch most sequences go through the predicted neurons alone,
the others through all: the model stays good without the mask and becomes good with it. The mask is a step function; to
the predictor it has the slope of a sigmoid (straight through, arXiv 1308.3432), so that the model's own loss says which
neurons must not be missed, beside the loss of training.py.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...common import processes
from ...predictors.config import Training
from ...predictors.folder import load_predictors
from ...predictors.predictor import Predictor
from ...predictors.stored import as_stored
from ...predictors.training import LATE_RATE, fc1_rate, trained_price

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank, E experts.
_LEARN_TOKENS = 512  # of a micro-batch, that the predictors' own loss looks at
_KEY = "model.layers.{layer}.mlp.predictor.{part}.{expert}"


class LayerPredictors(nn.Module):
    """The predictors of one layer in training, a submodule of its FFN, so that it is sharded and saved with the model.

    Args:
        start: one an expert; None leaves that FFN to exact mode.
        target_energy: share of the energy that the predicted neurons are to keep.
        stored_as: the type that they are going to be stored in.
    """

    price_E: torch.Tensor
    """What predicting a neuron costs, in units of the mean energy."""
    lost_E: torch.Tensor
    """Share of the energy that is left out, averaged over the last steps."""
    mean_E: torch.Tensor
    """[E, 2]: the mean token's energy, and the mean of the neurons' shares."""

    def __init__(self, start: list[Predictor | None], target_energy: float, stored_as: str) -> None:
        super().__init__()
        empty = torch.empty(0, 0)
        self.fc1 = nn.ParameterList([empty if p is None else torch.from_numpy(p.fc1_RD.copy()) for p in start])
        self.fc2 = nn.ParameterList([empty if p is None else torch.from_numpy(p.fc2_FR.copy()) for p in start])
        self.used = [predictor is not None for predictor in start]
        self.lost_goal, self.stored_as = max(1e-4, 1 - target_energy), stored_as
        self.register_buffer("price_E", torch.full((len(start),), -1.0))
        self.register_buffer("lost_E", torch.full((len(start),), -1.0))
        self.register_buffer("mean_E", torch.full((len(start), 2), -1.0))
        self.seen: dict[int, tuple[float, float]] = {}

    def logits(self, x_TD: torch.Tensor, expert: int) -> torch.Tensor:
        """[T, F], of the weights as they will be stored."""
        fc1_RD, fc2_FR = (_straight(part[expert], self.stored_as) for part in (self.fc1, self.fc2))
        return nn.functional.linear(nn.functional.linear(x_TD, fc1_RD).relu(), fc2_FR)

    def learn(self, z_TF: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor, expert: int) -> torch.Tensor:
        """The loss of training.py, mean over tokens and neurons; takes note of the energy that is kept."""
        z_TF = z_TF.float()
        with torch.no_grad():
            energy_TF, token_energy = _shares(h_TF.float() * down_F, self._mean(expert, 0))
            self._average(expert, 0, token_energy)
            self._average(expert, 1, float(energy_TF.mean()))
            weight_TF = energy_TF / max(self._mean(expert, 1), 1e-30) + Training.floor * (h_TF != 0)
            self.seen[expert] = float((energy_TF * (z_TF >= 0)).sum()), float(energy_TF.sum())
            if self.price_E[expert] < 0:
                self.price_E[expert] = trained_price(z_TF, weight_TF)
        price = float(self.price_E[expert])
        loss: torch.Tensor = ((weight_TF + price) * nn.functional.softplus(z_TF) - weight_TF * z_TF).mean()
        return loss

    def steer(self, expert: int, kept: float) -> None:
        """Move the price of a prediction so that the share of the energy that is kept comes to its goal."""
        lost = 1 - kept if self.lost_E[expert] < 0 else 0.9 * float(self.lost_E[expert]) + 0.1 * (1 - kept)
        excess = max(-1.0, min(1.0, math.log(max(1e-6, lost) / self.lost_goal)))
        self.lost_E[expert] = lost
        self.price_E[expert] = min(1e4, max(1e-6, float(self.price_E[expert]) * math.exp(-0.03 * excess)))

    def _mean(self, expert: int, which: int) -> float:
        return float(self.mean_E[expert, which])

    def _average(self, expert: int, which: int, value: float) -> None:
        before = self._mean(expert, which)
        self.mean_E[expert, which] = value if before < 0 else 0.95 * before + 0.05 * value


class LoopPredictors:
    """`convert.full_watch.InLoop` for the predictors of a folder.

    Args:
        folder: read when training starts.
        share: of the sequences, those that go through the mask.
        straight: the model's loss reaches the predictors through the mask.
    """

    def __init__(
        self, folder: Path, target_energy: float, stored_as: str, share: float = 0.9, *, straight: bool = True
    ) -> None:
        self.folder, self.target_energy, self.stored_as = folder, target_energy, stored_as
        self.share, self.straight = share, straight
        self.layers: list[LayerPredictors] = []

    def start(self, model: Any) -> None:
        """Put the predictors into ``model``."""
        for layer, row in zip(model.model.layers, load_predictors(self.folder).ffns, strict=True):
            layer.mlp.predictor = LayerPredictors(list(row), self.target_energy, self.stored_as)
            self.layers.append(layer.mlp.predictor)

    def rate(self, width: int) -> float:
        """A fifth of what they were trained with."""
        return fc1_rate(Training.learning_rate * LATE_RATE, width)

    def look(
        self, layer: int, expert: int, x_TD: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The logits of some inputs, and the predictors' own loss."""
        own = self.layers[layer]
        if not own.used[expert] or not len(x_TD):
            return None, None
        z_TF = own.logits(x_TD, expert)
        if down_F is None:
            return z_TF, None
        some = slice(None, None, -(-len(x_TD) // _LEARN_TOKENS))
        return z_TF, own.learn(z_TF[some], h_TF[some], down_F, expert)

    def use(self, h_TF: torch.Tensor, z_TF: torch.Tensor, masked_T: torch.Tensor) -> torch.Tensor:
        """h without what is not predicted, for the tokens in ``masked_T``."""
        masked: Any = _Mask.apply
        used_TF: torch.Tensor = masked(h_TF, z_TF if self.straight else z_TF.detach(), masked_T)
        return used_TF

    def step(self) -> None:
        """Steer the prices by what all processes saw."""
        seen = [(own, expert, pair) for own in self.layers for expert, pair in sorted(own.seen.items())]
        if processes.world() > 1:  # processes may have seen different experts
            every = [(own, expert) for own in self.layers for expert in range(len(own.used))]
            own_sums = [value for own, expert in every for value in own.seen.get(expert, (0.0, 0.0))]
            sums = processes.sums(*own_sums)
            seen = [(own, expert, (sums[2 * i], sums[2 * i + 1])) for i, (own, expert) in enumerate(every)]
        for own, expert, (kept, whole) in seen:
            if whole > 0:
                own.steer(expert, kept / whole)
        for own in self.layers:
            own.seen = {}

    def trained(self, state: Mapping[str, torch.Tensor]) -> list[list[Predictor | None]]:
        """The predictors of a model's state, as they will be stored."""
        return [
            [self._one(state, layer, expert) if used else None for expert, used in enumerate(own.used)]
            for layer, own in enumerate(self.layers)
        ]

    def _one(self, state: Mapping[str, torch.Tensor], layer: int, expert: int) -> Predictor:
        fc1_RD, fc2_FR = (
            as_stored(state[_KEY.format(layer=layer, part=part, expert=expert)].detach().float().cpu(), self.stored_as)
            for part in ("fc1", "fc2")
        )
        return Predictor(fc1_RD=fc1_RD.numpy(), fc2_FR=fc2_FR.numpy())


def _shares(weighted_TF: torch.Tensor, mean: float) -> tuple[torch.Tensor, float]:
    """`Labels.energy_TF` of h_j |down_j|, given the mean token's sum (below 0: not known yet); this batch's mean."""
    energy_TF = weighted_TF.square()
    own_T1 = energy_TF.sum(-1, keepdim=True)
    found = max(float(own_T1.mean()), 1e-30)
    tiny = torch.finfo(energy_TF.dtype).tiny
    return energy_TF * (0.5 / own_T1.clamp_min(tiny) + 0.5 / (mean if mean > 0 else found)), found


def _straight(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """``weight`` rounded, with the gradient of one that is not."""
    with torch.no_grad():
        rounding = as_stored(weight.float(), type_name) - weight
    return weight + rounding


class _Mask(torch.autograd.Function):
    """h where the logit is at least 0 or the token is not masked; the logit's slope is the sigmoid's."""

    @staticmethod
    def forward(ctx: Any, h_TF: torch.Tensor, z_TF: torch.Tensor, masked_T: torch.Tensor) -> torch.Tensor:
        keep_TF = (z_TF >= 0) | ~masked_T[:, None]
        ctx.save_for_backward(h_TF, z_TF, masked_T, keep_TF)
        return h_TF * keep_TF

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """To h what passed the mask, to z the sigmoid's share."""
        h_TF, z_TF, masked_T, keep_TF = ctx.saved_tensors
        to_h_TF, to_z_TF = slopes[0] * keep_TF, None
        if ctx.needs_input_grad[1]:
            rate_TF = z_TF.sigmoid()
            to_z_TF = slopes[0] * h_TF * rate_TF * (1 - rate_TF) * masked_T[:, None]
        return to_h_TF, to_z_TF, None
