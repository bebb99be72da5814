"""Thresholds by what they do to the whole model: as few neurons as predicted mode can do with at the loss asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..convert.checkpoint import Checkpoint
from ..convert.progress import progress
from ..convert.sweep import Stream, sweep
from .calibrate import FFNReport, judge, thresholds
from .cost import Bits
from .effect import Effect, compare, feed_forward_predicted
from .labels import ffns_of
from .predictor import Predictor

# Shape suffixes: N sequences, S tokens a sequence, T tokens.
Layers = list[list[Predictor | None]]
_ENERGY_SHARE = 4  # one token in so many measures the mean energy, the others calibrate
_TIGHTER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # of the energy that may be lost
_LIKE_ZERO = 0.95  # thresholds other than 0, which PowerInfer has not, want fewer neurons than this times those at 0


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Predictors with their thresholds, and what they do on held-out text."""

    layers: Layers
    reports: tuple[FFNReport, ...]
    effect: Effect

    @property
    def density(self) -> float:
        """Share of the neurons that are predicted."""
        used = [report.predicted_density for report in self.reports if report.used]
        return sum(used) / max(1, len(used))

    @property
    def loss(self) -> float:
        """Of perplexity, as a share of exact mode's."""
        return self.effect.perplexity_predicted / self.effect.perplexity_exact - 1


def calibrate_model(
    layers: Layers, checkpoint: Checkpoint, held_NS: torch.Tensor, target_energy: float, max_loss: float, bits: Bits,
    device: str = "cpu",
) -> Calibrated:  # fmt: skip
    """Set the thresholds of a model's predictors, which were trained for threshold 0.

    Tried are 0, the thresholds that keep ``target_energy`` in each FFN, and, until predicted mode costs at most
    ``max_loss``, those that keep more and more. Taken are the fewest neurons within it; where nothing is, what costs
    least. PowerInfer has no threshold but 0, so others must save something.

    Args:
        held_NS: text that the predictors were not trained on.
        max_loss: of perplexity against exact mode, such as 0.02.
    """
    exact = sweep(checkpoint, held_NS, [], device)
    energies = [1 - (1 - target_energy) * share for share in _TIGHTER]
    zero, found = _tried(layers, checkpoint, exact, bits, energies)
    ways = [zero]
    for i in range(len(energies)):
        with_thresholds = [
            [None if p is None else replace(p, threshold=at[i]) for p, at in zip(row, ats, strict=True)]
            for row, ats in zip(zero.layers, found, strict=True)
        ]
        ways.append(_tried(with_thresholds, checkpoint, exact, bits)[0])
        if ways[-1].loss <= max_loss:
            break
    return _best(ways, max_loss)


def _best(ways: Sequence[Calibrated], max_loss: float) -> Calibrated:
    """The first is at threshold 0."""
    zero, others = ways[0], [way for way in ways[1:] if way.loss <= max_loss]
    if zero.loss <= max_loss:
        return min((way for way in others if way.density < _LIKE_ZERO * zero.density), default=zero, key=_density)
    return min(others, default=min(ways, key=lambda way: way.loss), key=_density)


def _density(way: Calibrated) -> float:
    return way.density


def _tried(
    layers: Layers, checkpoint: Checkpoint, exact: Stream, bits: Bits, energies: Sequence[float] = ()
) -> tuple[Calibrated, list[list[list[float]]]]:
    """What predictors do with the thresholds that they have; of each FFN the thresholds that keep ``energies``."""
    stream = Stream(checkpoint, exact.rows_NS, str(exact.device))
    made: Layers = []
    reports: list[FFNReport] = []
    found: list[list[list[float]]] = []
    with progress("predicted mode", len(layers)) as step:
        for index, row in enumerate(layers):
            layer = stream.layer(index)
            stream.attend(layer)
            x_TD = torch.cat([part_TD.cpu() for part_TD in stream.inputs(layer)])
            made.append([])
            found.append([])
            for ffn, predictor in zip(ffns_of(layer, x_TD, len(x_TD) // _ENERGY_SHARE), row, strict=True):
                if predictor is None:
                    made[-1].append(None)
                    found[-1].append([])
                    reports.append(FFNReport(layer=index, expert=ffn.expert, rank=0, used=False, reason="as before"))
                    continue
                fired_F = ffn.fired().cpu().numpy() if predictor.fired_F is None else predictor.fired_F
                made[-1].append(replace(predictor, fired_F=fired_F))
                found[-1].append(thresholds(ffn, predictor, energies) if energies else [])
                reports.append(judge(ffn, predictor, bits))
            feed_forward_predicted(stream, layer, made[-1])
            del layer  # before the next one is read
            step("")
    effect = compare(exact, slice(None), stream, slice(None))
    return Calibrated(layers=made, reports=tuple(reports), effect=effect), found
