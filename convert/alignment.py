"""What makes a SwiGLU model a better start: signs for dReLU, scales of the ups for SwiGLU with thresholds."""

import torch

from ..common import processes
from ..model.modeling_turbosparse import activate


class SignAlignment:
    """The sign of each neuron that keeps the larger part of its energy in the dense model under dReLU.

    SwiGLU and GeGLU do not change when row j of up and column j of down are both negated; dReLU does, because it keeps
    only u > 0. The energy of neuron j is the sum of silu(g)^2 u^2 over the tokens with g > 0; of GeGLU likewise.

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


class UpScales:
    """The scale of each neuron's up, rms(silu(gate_j)), by which its size tells how much the neuron will add.

    Its gate is then as usual, and down as long as others' (compare CHESS, arXiv 2409.01366, and WINA, 2505.19427).

    Args:
        gate_FD: of one FFN.
        activation: the dense model's.
    """

    def __init__(self, gate_FD: torch.Tensor, activation: str) -> None:
        self.gate_FD, self.activation = gate_FD, activation
        self._sums_F = torch.zeros(gate_FD.shape[0] + 1, dtype=torch.float64, device=gate_FD.device)

    @torch.no_grad()
    def add(self, x_TD: torch.Tensor) -> None:
        """Take in some of the FFN's inputs, after the norm."""
        gate_TF = torch.nn.functional.linear(x_TD, self.gate_FD)
        gate_TF = activate(gate_TF, gate_TF.new_ones(()), self.activation)
        self._sums_F[:-1] += gate_TF.float().square_().sum(0).double()
        self._sums_F[-1] += len(x_TD)

    def scales(self) -> torch.Tensor:
        """[F], after the last `add`, over all processes; 1 where there were no inputs."""
        sums_F = processes.sum_(self._sums_F)
        return (sums_F[:-1] / sums_F[-1]).sqrt().float() if sums_F[-1] else torch.ones_like(self.gate_FD[:, 0])
