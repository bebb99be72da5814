"""A model in predicted mode, in torch: what the runner will compute, layer by layer in the sweep."""

import torch

from ..convert.layers import Layer
from ..convert.sweep import Stream
from .calibrate import logits
from .folder import Predictor

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons.


@torch.no_grad()
def feed_forward_predicted(stream: Stream, layer: Layer, predictors: list[Predictor | None]) -> None:
    """Push the hidden states through the FFN half, unpredicted neurons left out.

    Args:
        predictors: one an expert; None computes that FFN exactly.
    """
    for part in stream.batches():
        residual_NSD = stream.hidden_NSD[part].to(stream.device)
        with stream.precision():
            out_TD = _predicted(layer, layer.norm(residual_NSD).flatten(0, 1), predictors)
        stream.hidden_NSD[part] = (residual_NSD + out_TD.view_as(residual_NSD)).cpu()


def _predicted(layer: Layer, x_TD: torch.Tensor, predictors: list[Predictor | None]) -> torch.Tensor:
    def mask(expert: int, seen_TD: torch.Tensor) -> torch.Tensor:
        predictor = predictors[expert]
        if predictor is None:
            return torch.ones((), device=seen_TD.device)
        fc1_RD, fc2_FR = (torch.from_numpy(part).to(seen_TD) for part in (predictor.fc1_RD, predictor.fc2_FR))
        return logits(seen_TD, fc1_RD, fc2_FR) >= predictor.threshold

    out_TD = torch.zeros_like(x_TD)
    for token, _, part_TD in layer.ffn_parts(x_TD, mask):
        out_TD.index_add_(0, token, part_TD.float())
    return out_TD
