"""Predictors inside the whole model in training: it learns under their mask, and they learn on.

They come from local recovery (layer_predictors.py). Most sequences of a batch go through the predicted neurons alone,
the others through all: the model stays good without the mask and becomes good with it. The mask is a step function; to
the predictor it has the slope of a sigmoid (straight through, arXiv 1308.3432), so that the model's own loss says which
neurons must not be missed, beside the predictors' own loss (predictors/training/price.py).
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...common import processes
from ...model.checkpoint import Checkpoint
from ...model.layers import Layer
from ...model.sweep import Stream, sweep
from ...predictors.calibration.model import calibrate_model
from ...predictors.config import Training
from ...predictors.energy import energy_shares, ffns_of, loss_weights
from ...predictors.folder import PredictorSet, load_predictors, save_predictors
from ...predictors.predictor import Predictor
from ...predictors.report import PredictorReport
from ...predictors.torch_predictor import as_stored
from ...predictors.training.price import lost_goal, lost_share, price_of_trained, steered
from ...predictors.training.trainer import LATE_RATE, fc1_rate
from ..config import RelufyConfig
from ..config.masked import JointConfig

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons, R predictor rank, E experts.
_LEARN_TOKENS = 512  # of a micro-batch, that the predictors' own loss uses
_KEY = "model.layers.{layer}.mlp.predictor.{part}.{expert}"


class FFNPredictors(nn.Module):
    """The predictors of one layer in training, a submodule of its FFN, so that it is sharded and saved with the model.

    Args:
        start: one an expert; None leaves that FFN to exact mode.
        target_energy: share of the energy that the predicted neurons are to keep.
        stored_as: the type that they are going to be stored in.
    """

    price_E: torch.Tensor
    """As predictors/training/price.py; -1 before the first step, as the others."""
    lost_E: torch.Tensor
    """Running mean of the share of the energy that is left out."""
    mean_E: torch.Tensor
    """[E, 2]: running means of a token's energy, and of the neurons' shares."""

    def __init__(self, start: list[Predictor | None], target_energy: float, stored_as: str) -> None:
        super().__init__()
        empty = torch.empty(0, 0)
        self.fc1 = nn.ParameterList([empty if p is None else torch.from_numpy(p.fc1_RD.copy()) for p in start])
        self.fc2 = nn.ParameterList([empty if p is None else torch.from_numpy(p.fc2_FR.copy()) for p in start])
        self.used = [predictor is not None for predictor in start]
        self.linear = [predictor is not None and predictor.linear for predictor in start]
        self.lost_goal, self.stored_as = lost_goal(target_energy), stored_as
        self.register_buffer("price_E", torch.full((len(start),), -1.0))
        self.register_buffer("lost_E", torch.full((len(start),), -1.0))
        self.register_buffer("mean_E", torch.full((len(start), 2), -1.0))
        self.seen: dict[int, tuple[float, float]] = {}

    def logits(self, x_TD: torch.Tensor, expert: int) -> torch.Tensor:
        """[T, F], of the weights as they will be stored."""
        fc1_RD, fc2_FR = (_straight(part[expert], self.stored_as) for part in (self.fc1, self.fc2))
        hidden_TR = nn.functional.linear(x_TD, fc1_RD)
        return nn.functional.linear(hidden_TR if self.linear[expert] else hidden_TR.relu(), fc2_FR)

    def loss(self, z_TF: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor, expert: int) -> torch.Tensor:
        """The predictors' own loss, mean over tokens and neurons; takes note of the energy that is kept.

        Args:
            z_TF: logits.
            h_TF: the FFN's activations.
            down_F: the norms of down's columns.
        """
        z_TF = z_TF.float()
        with torch.no_grad():
            before = float(self.mean_E[expert, 0])
            energy_TF, token_energy = energy_shares(h_TF.float() * down_F, before if before > 0 else None)
            self._average(expert, 0, token_energy)
            self._average(expert, 1, float(energy_TF.mean()))
            weight_TF = loss_weights(energy_TF, float(self.mean_E[expert, 1]), h_TF != 0, Training.floor)
            self.seen[expert] = float((energy_TF * (z_TF >= 0)).sum()), float(energy_TF.sum())
            if self.price_E[expert] < 0:
                self.price_E[expert] = price_of_trained(z_TF, weight_TF)
        price = float(self.price_E[expert])
        loss: torch.Tensor = ((weight_TF + price) * nn.functional.softplus(z_TF) - weight_TF * z_TF).mean()
        return loss

    def steer(self, expert: int, kept: float) -> None:
        """Move the price of a prediction, given the share of the energy that was kept."""
        lost = lost_share(None if self.lost_E[expert] < 0 else float(self.lost_E[expert]), kept)
        self.lost_E[expert] = lost
        self.price_E[expert] = steered(float(self.price_E[expert]), lost, self.lost_goal)

    def _average(self, expert: int, which: int, value: float) -> None:
        before = float(self.mean_E[expert, which])
        self.mean_E[expert, which] = value if before < 0 else 0.95 * before + 0.05 * value


class ModelPredictors:
    """The predictors of a model that is trained as a whole.

    Args:
        folder: where they are read from.
        straight: the model's loss reaches the predictors through the mask.
    """

    def __init__(self, folder: Path, joint: JointConfig, *, straight: bool = True) -> None:
        self.joint, self.straight = joint, straight
        self.sequences = 0
        """Sequences that were asked about, `to_mask`."""
        self.layers = [
            FFNPredictors(list(row), joint.target_energy, joint.training.stored_as)
            for row in load_predictors(folder).ffns
        ]

    @staticmethod
    def rate(width: int) -> float:
        """The learning rate of the predictors' weights: a fifth of what they were trained with."""
        return fc1_rate(Training.learning_rate * LATE_RATE, width)

    def to_mask(self, sequences: int) -> int:
        """How many sequences of the next micro-batch see the mask: of all up to there, the share asked for.

        A micro-batch by itself would not do: nine of ten sequences are two of two.
        """
        share, before = self.joint.masked_share, self.sequences
        self.sequences += sequences
        return round(share * self.sequences) - round(share * before)

    def predict(self, layer: int, expert: int, x_TD: torch.Tensor) -> torch.Tensor | None:
        """The logits [T, F] of normed inputs; None where the FFN has no predictor."""
        own = self.layers[layer]
        return own.logits(x_TD, expert) if own.used[expert] and len(x_TD) else None

    def loss(
        self, layer: int, expert: int, z_TF: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor
    ) -> torch.Tensor:
        """The predictors' own loss on some of the tokens; the arguments are `FFNPredictors.loss`'s."""
        some = slice(None, None, -(-len(z_TF) // _LEARN_TOKENS))
        return self.layers[layer].loss(z_TF[some], h_TF[some], down_F, expert)

    def masked(self, h_TF: torch.Tensor, z_TF: torch.Tensor, masked_T: torch.Tensor) -> torch.Tensor:
        """h without what is not predicted, for the tokens in ``masked_T``."""
        mask: Any = _Mask.apply
        used_TF: torch.Tensor = mask(h_TF, z_TF if self.straight else z_TF.detach(), masked_T)
        return used_TF

    def steer(self) -> None:
        """Steer the prices after a micro-batch, by what all processes saw; call it in all of them."""
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
        """The predictors in a model's state, as they will be stored."""
        return [
            [self._one(state, layer, expert) if used else None for expert, used in enumerate(own.used)]
            for layer, own in enumerate(self.layers)
        ]

    def _one(self, state: Mapping[str, torch.Tensor], layer: int, expert: int) -> Predictor:
        fc1_RD, fc2_FR = (
            as_stored(
                state[_KEY.format(layer=layer, part=part, expert=expert)].detach().float().cpu(),
                self.joint.training.stored_as,
            )
            for part in ("fc1", "fc2")
        )
        linear = self.layers[layer].linear[expert]
        return Predictor(fc1_RD=fc1_RD.numpy(), fc2_FR=fc2_FR.numpy(), linear=linear)

    def write(
        self, state: Mapping[str, torch.Tensor], folder: Path, held_NS: torch.Tensor, config: RelufyConfig,
        tokens: int, start_s: float,
    ) -> PredictorReport:  # fmt: skip
        """Set the thresholds of the trained predictors, write their folder, and say what they do.

        Args:
            state: the trained model's.
            folder: the finished checkpoint.
            held_NS: sequences that nothing was trained on.
            tokens: that they were trained on.
        """
        joint, checkpoint, layers = self.joint, Checkpoint(folder), self.trained(state)
        exact = sweep(checkpoint, held_NS, [_FiringCounts(layers)], config.device)
        calibrated = calibrate_model(
            layers.__getitem__, checkpoint, exact, slice(None), joint.target_energy, joint.max_loss, joint.bits
        )
        report = PredictorReport(
            out=joint.out, method="low-rank, trained along with the whole model", target_energy=joint.target_energy,
            tokens=tokens, model_parameters=checkpoint.spec.parameters, ffns=calibrated.reports,
            stored_as=joint.training.stored_as,
            predictor_parameters=sum(p.parameters for layer in layers for p in layer if p is not None),
            **vars(calibrated.effect),
        )  # fmt: skip
        made_for = checkpoint.fingerprint
        before = load_predictors(joint.out).model_fingerprint if joint.out.exists() else None
        if before != made_for:  # equal: a run that was killed between writing these and naming the model is resumed
            chosen = [calibrated.apply(layer, row) for layer, row in enumerate(layers)]
            about = report.for_folder(config.data, config.seed)
            save_predictors(PredictorSet(model_fingerprint=made_for, ffns=chosen, report=about), joint.out)
        return replace(report, elapsed_s=time.monotonic() - start_s)


class _FiringCounts:
    """The sweep's visitor that notes in the predictors how often each neuron fires, by which exports order them."""

    def __init__(self, layers: list[list[Predictor | None]]) -> None:
        self.layers = layers

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Count on all tokens of ``stream``."""
        x_TD = torch.cat([part_TD.cpu() for part_TD in stream.inputs(layer)])
        self.layers[layer.index] = [
            None if predictor is None else replace(predictor, fired_F=ffn.fired().cpu().numpy())
            for ffn, predictor in zip(ffns_of(layer, x_TD, 0), self.layers[layer.index], strict=True)
        ]
        return ""


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
