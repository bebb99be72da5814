"""The learning rate by a model's weights.

A step of AdamW moves each weight by about the rate r, whatever its size. It changes a product of C inputs by up to r C
times an input, where the product itself is about rms(weights) sqrt(C) times one. So r is a share of rms / sqrt(C)
(as spectral norms have it: Yang et al., arXiv 2310.17813). Shares are what was best for SmolLM2; Gemma 3, whose weights
are a fifth as large, then has a fifth of its rate. Where all layers change at once, what L of them do to the output
adds up as sqrt(L), so each has 1 / sqrt(L) of the share (Yang et al., arXiv 2310.02244).
"""

import math
import statistics
from collections.abc import Iterable

import torch

LOCAL_SHARE = 0.77
FULL_SHARE = 0.14  # of a model of one layer


def learning_rate(share: float, parameters: Iterable[torch.Tensor], layers: int = 1) -> float:
    """The rate at which a step changes products of the median matrix by up to ``share`` / sqrt(layers) of their size.

    Args:
        parameters: of any shapes; vectors are passed over.
        layers: that are trained at once.
    """
    sizes = [size(each) for each in parameters if each.ndim > 1]
    return share * statistics.median(sizes) / math.sqrt(layers)


@torch.no_grad()
def size(matrix: torch.Tensor) -> float:
    """The root mean square of a matrix [..., rows, C], over sqrt(C)."""
    return float(matrix.float().square().mean().sqrt()) / math.sqrt(matrix.shape[-1])
