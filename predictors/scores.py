"""Predictors in torch: apart, so that a file is exported without loading it."""

import torch

from .predictor import Predictor

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.


class Scores:
    """The torch twin of a predictor's `logits`, its weights on ``device``."""

    def __init__(self, predictor: Predictor, device: torch.device) -> None:
        self.fc1_RD, self.fc2_FR = (torch.from_numpy(part).to(device) for part in (predictor.fc1_RD, predictor.fc2_FR))

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """[T, F], float32 whatever precision surrounds it."""
        return logits(x_TD, self.fc1_RD, self.fc2_FR)


def logits(x_TD: torch.Tensor, fc1_RD: torch.Tensor, fc2_FR: torch.Tensor) -> torch.Tensor:
    """fc2 . relu(fc1 . x), [T, F], in float32 whatever precision surrounds it."""
    with torch.autocast(x_TD.device.type, enabled=False):
        return (x_TD @ fc1_RD.T).relu_() @ fc2_FR.T
