"""A model in predicted mode, in torch: what the runner will compute, layer by layer in the sweep."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...common import processes
from ...common.progress import progress
from ...model.checkpoint import Checkpoint
from ...model.layers import Layer
from ...model.sweep import Stream
from ..predictor import Predictor
from ..torch_predictor import TorchPredictor

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class ModeComparison:
    """Predicted against exact mode, on the same tokens."""

    perplexity_exact: float
    perplexity_predicted: float
    kl_divergence: float
    """Mean over tokens of KL(exact | predicted), in nats."""
    same_top: float
    """Share of the tokens for which both find the same next token most likely."""


def predicted_stream(
    checkpoint: Checkpoint, rows_NS: torch.Tensor, layer_predictors: Callable[[int], Sequence[Predictor | None]],
    device: str,
) -> Stream:  # fmt: skip
    """The hidden states of ``rows_NS`` after the last layer, in predicted mode.

    Args:
        layer_predictors: those of layer i, one an expert; None computes that FFN exactly.
    """
    stream = Stream(checkpoint, rows_NS, device)
    with progress("predicted mode", checkpoint.spec.layers) as step:
        for index in range(checkpoint.spec.layers):
            layer = stream.layer(index)
            stream.attend(layer)
            feed_forward_predicted(stream, layer, layer_predictors(index))
            del layer  # before the next one is read
            step("")
    return stream


@torch.no_grad()
def compare(exact: Stream, ours: slice, predicted: Stream, theirs: slice) -> ModeComparison:
    """The effect of prediction, from both streams after the last layer; of the same sequences in each."""
    sums = [0.0, 0.0, 0.0, 0.0, 0.0]
    both = exact.logits(ours), predicted.logits(theirs)
    for exact_SV, predicted_SV, row_S in zip(*both, exact.rows_NS[ours], strict=True):
        log_SV, other_SV = exact_SV[:-1].log_softmax(-1), predicted_SV[:-1].log_softmax(-1)
        next_S = row_S[1:, None].to(log_SV.device)
        sums[0] -= float(log_SV.gather(1, next_S).double().sum())
        sums[1] -= float(other_SV.gather(1, next_S).double().sum())
        sums[2] += float((log_SV.exp() * (log_SV - other_SV)).double().sum())
        sums[3] += float((log_SV.argmax(-1) == other_SV.argmax(-1)).sum())
        sums[4] += len(next_S)
    *means, count = processes.sums(*sums)
    exact_nats, predicted_nats, divergence, same = (value / count for value in means)
    return ModeComparison(
        perplexity_exact=math.exp(exact_nats), perplexity_predicted=math.exp(predicted_nats),
        kl_divergence=divergence, same_top=same,
    )  # fmt: skip


@torch.no_grad()
def feed_forward_predicted(stream: Stream, layer: Layer, predictors: Sequence[Predictor | None]) -> None:
    """Push the hidden states through the FFN half, unpredicted neurons left out.

    Args:
        predictors: one an expert; None computes that FFN exactly.
    """
    scores = [None if predictor is None else TorchPredictor(predictor, stream.device) for predictor in predictors]

    def mask(expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        predictor, score = predictors[expert], scores[expert]
        if predictor is None or score is None:
            return torch.ones((), device=x_TD.device)
        return score(x_TD) >= predictor.threshold

    for part in stream.batches():
        residual_NSD = stream.hidden_NSD[part].to(stream.device)
        with stream.precision():
            x_TD = layer.norm(residual_NSD).flatten(0, 1)
            out_TD = torch.zeros_like(x_TD)
            for token, _, part_TD in layer.ffn_parts(x_TD, mask):
                out_TD.index_add_(0, token, part_TD.float())
        stream.hidden_NSD[part] = (residual_NSD + out_TD.view_as(residual_NSD)).cpu()
