"""Where a linear predictor of a ReGLU FFN starts: the best map of its rank, in closed form.

A neuron fires where its gate is over the threshold, and what it adds grows with how far. So the start is the map L of
rank R that is closest to that distance, E |S (gate(x) - t - L x)|^2, S what a unit of a gate is worth: the size of the
neuron's up times that of its column of down. By whitened inputs it is a truncated singular value decomposition.
"""

import torch

from ...common import processes
from ..energy import FFN

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
_TOKENS = 8192  # that the inputs' moments are taken of
_RIDGE = 1e-3  # of each dimension's own second moment
_LOGIT = 3.0  # standard deviation of a logit, over tokens and neurons


@torch.no_grad()
def closest_linear(ffn: FFN, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """fc1 [R, D] and fc2 [F, R]; rows beyond the width of the model are 0, and NaN all if inputs are."""
    moment_DD, mean_D = _moments(ffn)
    wide_DD, failed = torch.linalg.cholesky_ex(moment_DD)
    if failed or not bool(wide_DD.isfinite().all()):
        nan = torch.full((1,), torch.nan, device=ffn.device)
        return nan.expand(rank, ffn.width).clone(), nan.expand(ffn.neurons, rank).clone()
    # without a bias: a constant is what the inputs can say of it
    one_D = torch.cholesky_solve(mean_D[:, None], wide_DD)[:, 0].float()
    root_DD = wide_DD.float()
    size_F = ffn.down_F * (ffn.up_FD.float() @ root_DD).norm(dim=1)
    at_zero_F = ffn.layer.gate_up(torch.zeros(1, ffn.width, device=ffn.device), ffn.expert)[0][0]
    wanted_FD = (ffn.gate_FD.float() + (at_zero_F - ffn.layer.threshold)[:, None] * one_D) * size_F[:, None]
    whitened_FD = wanted_FD @ root_DD
    square_D, basis_DD = torch.linalg.eigh(whitened_FD.T @ whitened_FD)
    kept = min(rank, ffn.width)
    basis_DR, scale_R = basis_DD[:, -kept:].flip(1), square_D[-kept:].flip(0).clamp_min(1e-30).pow(0.25)
    logit = (square_D[-kept:].sum() / ffn.neurons).sqrt().clamp_min(1e-30)  # the whitened inputs have size 1
    share = (_LOGIT / logit).sqrt()
    fc1_RD, fc2_FR = torch.zeros(rank, ffn.width, device=ffn.device), torch.zeros(ffn.neurons, rank, device=ffn.device)
    fc1_RD[:kept] = torch.linalg.solve_triangular(root_DD.T, basis_DR, upper=True).T * (scale_R * share)[:, None]
    fc2_FR[:, :kept] = whitened_FD @ basis_DR / scale_R * share
    return fc1_RD, fc2_FR


def _moments(ffn: FFN) -> tuple[torch.Tensor, torch.Tensor]:
    """E x x^T and E x of training tokens, in float64: directions of very different sizes are told apart by them."""
    x_TD = ffn.inputs(ffn.own(torch.arange(min(_TOKENS, ffn.train_tokens)))).double()
    tokens = processes.sums(len(x_TD))[0]
    moment_DD, mean_D = (processes.sum_(part) / tokens for part in (x_TD.T @ x_TD, x_TD.sum(0)))
    moment_DD.diagonal().mul_(1 + _RIDGE).add_(1e-12)
    return moment_DD, mean_D
