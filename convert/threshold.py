"""The threshold shift: what relu gives below a small t becomes zero (FATReLU, as ProSparse's last step, 2402.13516).

One t a layer, for gates and under dReLU for ups as well: the largest one with which the neurons left keep a share of
the energy sum_j (h_j |down_j|)^2, measured on text, layer by layer, each behind layers that are shifted already.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common import processes
from ..common.files import write_json
from ..model.checkpoint import Checkpoint
from ..model.layers import Layer
from ..model.sweep import Stream
from .report import ThresholdShift

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons.
_BINS = 4096
_DECADES = 6  # below the largest value, that bins reach


def shift(folder: Path, rows_NS: torch.Tensor, energy: float, device: str) -> ThresholdShift:
    """Set the thresholds of the checkpoint in ``folder``, in its config.json.

    Args:
        rows_NS: text that the model was not trained on, of this process.
        energy: the share that is to be kept, above 0 and below 1.
    """
    checkpoint = Checkpoint(folder)
    before, after = (Stream(checkpoint, rows_NS, device) for _ in range(2))
    thresholds: list[float] = []
    fired = np.zeros((2, 2))
    for index in range(checkpoint.spec.layers):
        layer = before.layer(index)
        before.attend(layer)
        fired[0] += _count(layer, before)
        before.feed_forward(layer)
        after.attend(layer)
        thresholds.append(_threshold(layer, after, energy))
        layer.threshold = thresholds[-1]
        fired[1] += _count(layer, after)
        after.feed_forward(layer)
    if not processes.rank():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", config | {"ffn_thresholds": thresholds})
    return ThresholdShift(
        thresholds=tuple(thresholds), density_before=fired[0, 0] / fired[0, 1], density=fired[1, 0] / fired[1, 1],
        perplexity_before=float(np.exp(before.cross_entropy(slice(None)))),
        perplexity=float(np.exp(after.cross_entropy(slice(None)))),
    )  # fmt: skip


@torch.no_grad()
def _threshold(layer: Layer, stream: Stream, energy: float) -> float:
    """By the energy in bins of the smaller factor, which is what a threshold cuts off."""
    largest = processes.extremes(0.0, max(float(factor_TF.max()) for factor_TF, _ in _factors(layer, stream)))[1]
    if not largest > 0:
        return 0.0
    edges = largest * 10 ** np.linspace(-_DECADES, 0, _BINS)
    sums = torch.zeros(_BINS + 1, dtype=torch.float64)
    for factor_TF, energy_TF in _factors(layer, stream):
        place_TF = torch.bucketize(factor_TF.cpu(), torch.from_numpy(edges).float())
        sums += torch.bincount(place_TF.flatten(), energy_TF.double().cpu().flatten(), minlength=_BINS + 1)
    whole = torch.tensor(processes.sums(*sums.tolist()), dtype=torch.float64)
    lost = whole.cumsum(0) / whole.sum().clamp_min(1e-300)
    below = int((lost[:-1] <= 1 - energy).sum())  # bin i holds what is at most edge i
    return float(edges[below - 1]) if below else 0.0


def _factors(layer: Layer, stream: Stream) -> Any:
    """For each batch and FFN: the smaller of relu(gate) and relu(up) (under ReGLU relu(gate)), and the energies."""
    for x_TD in stream.inputs(layer):
        for expert, (token, _) in enumerate(layer.route(x_TD)):
            if not len(token):
                continue
            h_TF = layer.activations(x_TD[token], expert)
            down_DF = layer.ffn_weights(expert)[2]
            yield layer.factors(x_TD[token], expert), (h_TF * down_DF.norm(dim=0)).square_()


@torch.no_grad()
def _count(layer: Layer, stream: Stream) -> np.ndarray:
    """Neurons that fire, and all, over this process's tokens and all others'."""
    fired, seen = 0, 0
    for x_TD in stream.inputs(layer):
        for expert, (token, _) in enumerate(layer.route(x_TD)):
            h_TF = layer.activations(x_TD[token], expert)
            fired, seen = fired + int((h_TF != 0).sum()), seen + h_TF.numel()
    return np.array(processes.sums(fired, seen))
