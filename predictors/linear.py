"""A predictor from linear algebra alone: the truncated SVD of the gate.

fc2 . relu(fc1 . x) computes a linear map exactly when fc1 holds each of its rows with both signs:
P x = relu(P x) - relu(-P x). So rank R of the predictor carries R / 2 singular directions.
"""

import torch

from ..convert import distributed
from .labels import FFN

# Shape suffixes: T tokens, D model width, F neurons, K singular directions, R predictor rank.
_SAMPLE_TOKENS = 8192


def gate_svd(ffn: FFN, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate, as well as ``rank`` / 2 directions give it for inputs like the training tokens (SVDP, 2603.14110).

    Plain truncation treats all input directions alike; whitening by the inputs' second moment, as here, is exact least
    squares on them.

    Returns:
        fc1 [R, D], fc2 [F, R].
    """
    x_TD = _sample(ffn, generator)
    scale_F = ffn.down_F / ffn.down_F.mean().clamp_min(1e-30)
    return _reduced_rank(ffn.gate_FD * scale_F[:, None], _second_moment(x_TD), rank)


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
    moment_DD = distributed.sum_(x_TD.T @ x_TD) / distributed.sums(len(x_TD))[0]
    ridge = 1e-4 * moment_DD.diagonal().mean().clamp_min(1e-12)
    return moment_DD + ridge * torch.eye(len(moment_DD), device=x_TD.device)
