"""What a predictor's weights are once they are stored in a GGUF type: training looks through that rounding.

The gradient goes to the weights before the rounding as if there were none (straight through, arXiv 1308.3432). What is
saved are the rounded values, which the export's own rounding then leaves as they are.
"""

import torch

_BLOCK = 32


def as_stored(weight: torch.Tensor, type_name: str) -> torch.Tensor:
    """``weight`` [rows, columns] as ``type_name`` holds it, in float32.

    Blocks of 32 along the rows, a float16 scale each (quantize_row_q8_0_ref, quantize_row_q4_0_ref of ggml); rows that
    32 does not divide are F16, as in the export.
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
