"""A model in predicted mode, in torch: what the runner will compute, layer by layer in the sweep."""

import torch
from torch import nn

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
        x_TD = layer.norm(residual_NSD).flatten(0, 1)
        out_TD = torch.zeros_like(x_TD)
        for expert, (token, weight_T1) in enumerate(layer.route(x_TD)):
            seen_TD = x_TD[token]
            h_TF = layer.activations(seen_TD, expert)
            predictor = predictors[expert]
            if predictor is not None:
                fc1_RD, fc2_FR = (torch.from_numpy(part).to(x_TD) for part in (predictor.fc1_RD, predictor.fc2_FR))
                h_TF = h_TF * (logits(seen_TD, fc1_RD, fc2_FR) >= predictor.threshold)
            share_TD = nn.functional.linear(h_TF, layer.ffn_weights(expert)[2])
            out_TD.index_add_(0, token, share_TD if weight_T1 is None else share_TD * weight_T1)
        stream.hidden_NSD[part] = (residual_NSD + out_TD.view_as(residual_NSD)).cpu()
