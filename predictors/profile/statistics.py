"""Statistics of activations that need no more memory than one block of tokens."""

import numpy as np
import torch

from ...common import processes

# Shape suffixes: N windows, W tokens a window, T tokens, F neurons.
_BINS_PER_OCTAVE = 16
_LOWEST, _HIGHEST = -120, 60  # log2 of the energies that are told apart
UNION_WIDTHS = (1, 2, 4, 8, 16, 32, 64)


class EnergyHistogram:
    """Which share of all (token, neuron) pairs carries a share of their energy, in bins of 1/16 octave."""

    def __init__(self) -> None:
        bins = (_HIGHEST - _LOWEST) * _BINS_PER_OCTAVE
        self.count = np.zeros(bins, np.int64)
        self.energy = np.zeros(bins)
        self.pairs = 0

    def add(self, energy_TF: torch.Tensor) -> None:
        """Take in the energies (h_j |down_j|)^2 of a block of tokens."""
        flat = energy_TF[energy_TF > 0].double()
        octave = flat.log2().clamp(_LOWEST, _HIGHEST - 1e-6)
        index = ((octave - _LOWEST) * _BINS_PER_OCTAVE).long()
        self.count += torch.bincount(index, minlength=len(self.count)).cpu().numpy()
        self.energy += torch.bincount(index, weights=flat, minlength=len(self.energy)).cpu().numpy()
        self.pairs += energy_TF.numel()

    def add_others(self, device: torch.device) -> None:
        """Take in what the other processes counted."""
        self.count, self.energy = (
            processes.sum_(torch.from_numpy(part).to(device)).cpu().numpy() for part in (self.count, self.energy)
        )
        self.pairs = int(processes.sums(self.pairs)[0])

    def share_of_values(self, target: float) -> float:
        """The smallest share of the pairs, strongest first, that holds ``target`` of the energy (to one bin)."""
        kept = np.cumsum(self.energy[::-1])
        if not self.pairs or kept[-1] <= 0:
            return 0.0
        last = int(np.searchsorted(kept, target * kept[-1]))
        return float(self.count[::-1][: last + 1].sum()) / self.pairs


def fired_union(fires_TF: torch.Tensor, token: torch.Tensor, tokens: int, context: int) -> dict[int, float]:
    """How the set of neurons that a run of consecutive tokens needs grows with the run.

    Args:
        fires_TF: which neurons of one FFN fire, for the tokens that it sees.
        token: which of the ``tokens`` they are (sorted indices); the others fire nothing here.
        tokens: of the block, whole sequences of ``context``.

    Returns:
        Mean share of the F neurons that fire at least once in 1, 2, 4, ... consecutive tokens of one sequence.
    """
    if len(token) < tokens:
        spread_TF = torch.zeros(tokens, fires_TF.shape[1], dtype=torch.bool, device=fires_TF.device)
        spread_TF[token] = fires_TF
        fires_TF = spread_TF
    union_NWF = fires_TF.view(tokens // context, context, -1)
    found: dict[int, float] = {}
    for width in UNION_WIDTHS:
        if width > 1:
            pairs = union_NWF.shape[1] // 2
            if not pairs:
                break
            union_NWF = union_NWF[:, 0 : 2 * pairs : 2] | union_NWF[:, 1 : 2 * pairs : 2]
        found[width] = float(union_NWF.sum()) / union_NWF.numel()
    return found
