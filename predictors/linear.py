"""A predictor from linear algebra alone: a truncated SVD of the rows that decide whether a neuron fires.

fc2 . relu(fc1 . x) computes a linear map exactly when fc1 holds each of its rows with both signs:
P x = relu(P x) - relu(-P x). So rank R of the predictor carries R / 2 singular directions.

A ReGLU neuron fires where its gate is positive. A dReLU neuron fires where gate and up are, so what is approximated is
their sum, each of unit size over the inputs: at 98 % of the energy it names a sixth (rank 32) to a quarter (rank 64)
fewer neurons than the gate alone (docs/benchmarks).
"""

import torch

from ..common import processes
from .energy import FFN

# Shape suffixes: T tokens, D model width, F neurons, K singular directions, R predictor rank.
_SAMPLE_TOKENS = 8192


def truncated_svd(ffn: FFN, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The score of firing, as well as ``rank`` / 2 directions give it for inputs like the training tokens.

    After SVDP (arXiv 2603.14110), which takes the gate. Plain truncation treats all input directions alike; whitening
    by the inputs' second moment, as here, is exact least squares on them.

    Returns:
        fc1 [R, D], fc2 [F, R].
    """
    moment_DD = _second_moment(_sample(ffn, generator))
    score_FD = _unit(ffn.gate_FD, moment_DD)
    if ffn.layer.activation == "drelu":
        score_FD = score_FD + _unit(ffn.up_FD, moment_DD)
    return _reduced_rank(score_FD, moment_DD, rank)


def _unit(weight_FD: torch.Tensor, moment_DD: torch.Tensor) -> torch.Tensor:
    """Each row divided by the root mean square of what it gives for inputs of that second moment."""
    size_F1 = ((weight_FD @ moment_DD) * weight_FD).sum(1, keepdim=True).sqrt()
    return weight_FD / size_F1.clamp_min(1e-30)


def _reduced_rank(weight_FD: torch.Tensor, moment_DD: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The map of rank K = R / 2 that is closest to weight_FD for inputs of that second moment, with both signs."""
    root_DD = torch.linalg.cholesky(moment_DD)  # moment = root . root^T
    left_FD, value_D, right_DD = torch.linalg.svd(weight_FD @ root_DD, full_matrices=False)
    keep = max(1, min(rank // 2, len(value_D)))
    rows_KD = torch.linalg.solve_triangular(root_DD.T, right_DD[:keep].T, upper=True).T
    columns_FK = left_FD[:, :keep] * value_D[:keep]
    return torch.cat([rows_KD, -rows_KD]), torch.cat([columns_FK, -columns_FK], dim=1)


def _sample(ffn: FFN, generator: torch.Generator) -> torch.Tensor:
    return ffn.inputs(ffn.own(torch.randperm(ffn.train_tokens, generator=generator)[:_SAMPLE_TOKENS]))


def _second_moment(x_TD: torch.Tensor) -> torch.Tensor:
    """E[x x^T], with a little added to the diagonal so that it has a root."""
    moment_DD = processes.sum_(x_TD.T @ x_TD) / processes.sums(len(x_TD))[0]
    ridge = 1e-4 * moment_DD.diagonal().mean().clamp_min(1e-12)
    return moment_DD + ridge * torch.eye(len(moment_DD), device=x_TD.device)
