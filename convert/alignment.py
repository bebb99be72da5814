"""What makes a SwiGLU model a better start: signs for dReLU, scales of the ups for SwiGLU with thresholds."""

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


class UpScales:
    """The scale of each neuron's up, moved there from down, by which its size tells how much the neuron will add.

    SwiGLU does not change when row j of up is multiplied by c and column j of down divided by it. With c_j = |down_j|
    the size of an activation is what neuron j adds, and one threshold serves all neurons; with c_j = |down_j|
    rms(silu(gate_j)) the size of an up is what it adds when its gate is as usual (compare CHESS, arXiv 2409.01366, and
    WINA, 2505.19427).

    Args:
        gate_FD, down_DF: the FFN's weights.
        by_up: the ups are to be held against a threshold, not the activations alone.
    """

    def __init__(self, gate_FD: torch.Tensor, down_DF: torch.Tensor, *, by_up: bool) -> None:
        self.gate_FD, self.down_DF, self.by_up = gate_FD, down_DF, by_up
        self._sums_F = torch.zeros(gate_FD.shape[0] + 1, dtype=torch.float64, device=gate_FD.device)

    @torch.no_grad()
    def add(self, x_TD: torch.Tensor) -> None:
        """Take in some of the FFN's inputs, after the norm."""
        if not self.by_up:
            return
        gate_TF = torch.nn.functional.silu(torch.nn.functional.linear(x_TD, self.gate_FD))
        self._sums_F[:-1] += gate_TF.float().square_().sum(0).double()
        self._sums_F[-1] += len(x_TD)

    def scales(self) -> torch.Tensor:
        """c [F], before any common factor, after the last `add`; over all processes."""
        size_F: torch.Tensor = self.down_DF.norm(dim=0)
        if not self.by_up:
            return size_F
        sums_F = processes.sum_(self._sums_F)
        rms_F = (sums_F[:-1] / sums_F[-1].clamp_min(1)).sqrt().to(self.down_DF.dtype)
        return size_F * rms_F
