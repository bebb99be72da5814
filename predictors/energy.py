"""What a predictor of one FFN learns from: its inputs, and how much energy leaving each neuron out would lose."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..common import processes
from ..model.layers import Layer
from ..model.spec import THRESHOLDED

# Shape suffixes: T tokens, D model width, F neurons.
_BLOCK_ELEMENTS = 2**24
_MEASURED_TOKENS = 8192


def energy_shares(out_TF: torch.Tensor, mean_energy: float | None = None) -> tuple[torch.Tensor, float]:
    """What leaving each neuron out costs, 0 where it is silent.

    With a neuron's energy e = (h |down|)^2 this is the mean of two measures: e over its token's sum of energies, and e
    over the mean token's sum. Real models have a few tokens (the first of a text) with a thousand times the energy of
    the others, to which all later tokens attend: by the second measure alone nothing else counts, by the first alone
    they are lost.

    Args:
        out_TF: h |down|, the size of each neuron's output.
        mean_energy: the mean over tokens of the sum of energies; None takes that of these tokens.

    Returns:
        The energies [T, F], and the mean over these tokens of the sum of energies.
    """
    energy_TF = out_TF.square()
    token_T1 = energy_TF.sum(-1, keepdim=True)
    here = max(float(token_T1.mean()), 1e-30) if len(out_TF) else 1e-30
    token_T1 = token_T1.clamp_min(torch.finfo(energy_TF.dtype).tiny)
    return energy_TF * (0.5 / token_T1 + 0.5 / (here if mean_energy is None else mean_energy)), here


def loss_weights(energy_TF: torch.Tensor, mean: float, fires_TF: torch.Tensor, floor: float) -> torch.Tensor:
    """The weights w [T, F] of the predictors' loss (price.py): energies in units of their mean, and firing itself.

    Args:
        mean: of the energies, over tokens and neurons.
        floor: the weight of a neuron that fires with next to no energy.
    """
    return energy_TF / max(mean, 1e-30) + floor * fires_TF


@dataclass(frozen=True)
class Labels:
    """What every neuron of an FFN does for a batch of tokens."""

    energy_TF: torch.Tensor
    """As `energy_shares`."""
    gate_TF: torch.Tensor
    """What exact mode looks at first is over its threshold: the gate, or with thresholds of ups an up's size."""
    fires_TF: torch.Tensor
    """The activation is not zero."""


class FFN:
    """One FFN (expert) and the tokens of this process that reach it.

    Args:
        layer: with its weights.
        expert: which of its FFNs; 0 for a dense one.
        x_TD: the layer's normed inputs, all tokens; not copied.
        token: which of them the FFN sees, in the order of the text.
        train_tokens: the first so many tokens of ``x_TD`` are trained on; those after them calibrate.
    """

    def __init__(self, layer: Layer, expert: int, x_TD: torch.Tensor, token: torch.Tensor, train_tokens: int) -> None:
        self.layer, self.expert, self.x_TD = layer, expert, x_TD
        token = token.cpu()
        self.train = token[token < train_tokens]
        self.calibration = token[token >= train_tokens]
        self.first_train = processes.before(len(self.train))
        self.train_tokens, self.calibration_tokens = (
            int(count) for count in processes.sums(len(self.train), len(self.calibration))
        )
        self.gate_FD, self.up_FD, self.down_DF = layer.ffn_weights(expert)
        self.refresh()
        self.neurons, self.width = self.gate_FD.shape
        self._mean_energy: float | None = None

    @property
    def device(self) -> torch.device:
        """Where the layer's weights are."""
        return self.layer.device

    def inputs(self, token: torch.Tensor) -> torch.Tensor:
        """The normed inputs [T, D] of some tokens."""
        return self.x_TD[token.to(self.x_TD.device)].to(self.device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take in that the layer's weights have changed."""
        self.down_F = self.down_DF.norm(dim=0)

    def own(self, chosen: torch.Tensor) -> torch.Tensor:
        """Those of some training tokens of all processes (0 to ``train_tokens``) that are this process's."""
        chosen = chosen - self.first_train
        return self.train[chosen[(chosen >= 0) & (chosen < len(self.train))]]

    @torch.no_grad()
    def labels(self, x_TD: torch.Tensor, *, autocast: bool = False) -> Labels:
        """What the neurons do for ``x_TD``.

        Args:
            autocast: gate and up are computed in bfloat16.
        """
        layer = self.layer
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            gate_TF, up_TF = (part.float() for part in layer.gate_up(x_TD, self.expert))
        h_TF = layer.activate(gate_TF, up_TF, self.expert)
        if self._mean_energy is None:
            self._mean_energy = self._measure_energy()
        energy_TF, _ = energy_shares(h_TF * self.down_F, self._mean_energy)
        if layer.activation in THRESHOLDED:
            first_TF = layer.up_sizes(up_TF, self.expert) > layer.up_threshold
        else:
            first_TF = gate_TF > layer.threshold
        return Labels(energy_TF, first_TF, h_TF != 0)

    def _measure_energy(self) -> float:
        """The mean over (some) training tokens of the sum over neurons of (h_j |down_j|)^2."""
        x_TD = self.inputs(self.own(torch.arange(min(_MEASURED_TOKENS, self.train_tokens))))
        h_TF = self.layer.activations(x_TD, self.expert)
        energy, tokens = processes.sums(float((h_TF * self.down_F).square_().double().sum()), len(x_TD))
        return max(energy / tokens, 1e-30) if tokens else 1.0

    @torch.no_grad()
    def fired(self) -> torch.Tensor:
        """How often each neuron [F] fires on the calibration tokens."""
        count_F = torch.zeros(self.neurons, device=self.device)
        for x_TD in self.calibration_blocks():
            count_F += (self.layer.activations(x_TD, self.expert) != 0).sum(0)
        return processes.sum_(count_F)

    def calibration_blocks(self) -> Iterator[torch.Tensor]:
        """The inputs of the tokens that calibrate, in blocks whose labels stay small."""
        for token in self.calibration.split(max(1, _BLOCK_ELEMENTS // self.neurons)):
            yield self.inputs(token)


@torch.no_grad()
def ffns_of(layer: Layer, x_TD: torch.Tensor, train_tokens: int) -> list[FFN]:
    """The FFNs of ``layer`` for its normed inputs, the first ``train_tokens`` of which train; all share ``x_TD``."""
    routes = layer.route(x_TD.to(layer.device))
    return [FFN(layer, expert, x_TD, token, train_tokens) for expert, (token, _) in enumerate(routes)]
