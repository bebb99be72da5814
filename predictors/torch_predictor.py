"""Predictors in torch: their logits, and what rounding to a GGUF type makes of their weights.

This is apart from predictor.py so that a file can be exported without loading torch.
"""

import torch

from .predictor import Predictor

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
_BLOCK = 32


class TorchPredictor:
    """The torch twin of a predictor's `logits`, its weights on ``device``."""

    def __init__(self, predictor: Predictor, device: torch.device) -> None:
        self.fc1_RD, self.fc2_FR = (torch.from_numpy(part).to(device) for part in (predictor.fc1_RD, predictor.fc2_FR))
        self.linear = predictor.linear

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The logits [T, F] of normed inputs."""
        return logits(x_TD, self.fc1_RD, self.fc2_FR, linear=self.linear)


def logits(x_TD: torch.Tensor, fc1_RD: torch.Tensor, fc2_FR: torch.Tensor, *, linear: bool) -> torch.Tensor:
    """fc2 . relu(fc1 . x), or without relu, [T, F], in float32 whatever precision surrounds it."""
    with torch.autocast(x_TD.device.type, enabled=False):
        hidden_TR = x_TD @ fc1_RD.T
        return (hidden_TR if linear else hidden_TR.relu_()) @ fc2_FR.T


def as_stored(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """``weight`` [rows, columns] as ``type_name`` (F16, Q8_0 or Q4_0) holds it, in float32.

    Blocks of 32 along the rows have a float16 scale each (quantize_row_q8_0_ref, quantize_row_q4_0_ref of ggml); rows
    that 32 does not divide are F16, as in the export, whose own rounding then changes nothing.
    """
    if type_name == "F16" or weight.shape[-1] % _BLOCK:
        return weight.half().float()
    blocks = weight.reshape(-1, _BLOCK)
    if type_name == "Q8_0":
        scale = blocks.abs().amax(1, keepdim=True) / 127
        levels = (blocks / scale.clamp_min(1e-30)).round()
    else:
        extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = extreme / -8
        safe = torch.where(scale == 0, 1.0, scale)
        levels = (blocks / safe + 8.5).floor().clamp(0, 15) - 8
    return (levels * scale.half().float()).reshape(weight.shape)
