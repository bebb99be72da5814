"""Predictors in torch: apart, so that a file is exported without loading it."""

import numpy as np
import torch

from .predictor import AnyPredictor, SignPredictor

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank, M matrices.


class Scores:
    """The torch twin of a predictor's `logits`, its weights on ``device``."""

    def __init__(self, predictor: AnyPredictor, device: torch.device) -> None:
        if isinstance(predictor, SignPredictor):
            bits_MFD = np.unpackbits(predictor.signs_MFB, axis=-1, count=predictor.width)
            self.fc1_RD, weight_FD = None, (1 - 2 * bits_MFD.astype(np.float32)).sum(0)
            self.fc2_FR = torch.from_numpy(weight_FD).to(device)
        else:
            self.fc1_RD, self.fc2_FR = (
                torch.from_numpy(part).to(device) for part in (predictor.fc1_RD, predictor.fc2_FR)
            )

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """[T, F], float32 whatever precision surrounds it."""
        if self.fc1_RD is not None:
            return logits(x_TD, self.fc1_RD, self.fc2_FR)
        with torch.autocast(x_TD.device.type, enabled=False):
            return x_TD.sign() @ self.fc2_FR.T


def logits(x_TD: torch.Tensor, fc1_RD: torch.Tensor, fc2_FR: torch.Tensor) -> torch.Tensor:
    """fc2 . relu(fc1 . x), [T, F], in float32 whatever precision surrounds it."""
    with torch.autocast(x_TD.device.type, enabled=False):
        return (x_TD @ fc1_RD.T).relu_() @ fc2_FR.T
