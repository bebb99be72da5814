"""The sign alignment that makes a dReLU model a better start."""

import torch

from ..common import processes
from ..model.modeling_turbosparse import activate


class SignAlignment:
    """The sign of each neuron that keeps the larger part of its energy in the dense model under dReLU.

    SwiGLU does not change when row j of up and column j of down are both negated; dReLU does, because it keeps only
    u > 0. The energy of neuron j is the sum of silu(g)^2 u^2 over the tokens with g > 0; of GeGLU likewise.

    Args:
        neurons: F.
        activation: the dense model's.
        device: where the sums are kept.
    """

    def __init__(self, neurons: int, activation: str = "swiglu", device: torch.device | str = "cpu") -> None:
        self.activation = activation
        self._energy_2F = torch.zeros(2, neurons, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, gate_TF: torch.Tensor, up_TF: torch.Tensor) -> None:
        """Take in what gate and up give for some of the FFN's inputs."""
        energy_TF = activate(gate_TF, up_TF, self.activation).float().square_().mul_(gate_TF > 0)
        self._energy_2F[0] += energy_TF.sum(0).double()
        self._energy_2F[1] += energy_TF.mul_(up_TF > 0).sum(0).double()

    def signs(self) -> tuple[torch.Tensor, float, float]:
        """After the last `add`, over all processes.

        Returns:
            signs [F] of +1 or -1; the share of the energy on u > 0 before; the same after.
        """
        total_F, positive_F = processes.sum_(self._energy_2F)
        flip_F = positive_F * 2 < total_F
        whole = max(float(total_F.sum()), 1e-300)
        kept_F = torch.where(flip_F, total_F - positive_F, positive_F)
        signs_F = torch.where(flip_F, -1.0, 1.0).float()
        return signs_F, float(positive_F.sum()) / whole, float(kept_F.sum()) / whole
