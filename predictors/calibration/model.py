"""Thresholds by what they do to the whole model: as few neurons as predicted mode can do with at the loss asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...common.progress import note, progress
from ...model.checkpoint import Checkpoint
from ...model.sweep import Stream
from ..cost import Bits
from ..energy import ffns_of
from ..predictor import Predictor
from ..report import FFNReport
from .ffn import judge, left_to_exact
from .ffn import thresholds as energy_thresholds
from .predicted_mode import ModeComparison, compare, feed_forward_predicted

# Shape suffixes: N sequences, S tokens a sequence, T tokens, F neurons.
_ENERGY_SHARE = 4  # one token in so many measures the mean energy, the others calibrate
_TIGHTER = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # of the energy that may be lost
_LIKE_ZERO = 0.95  # thresholds other than 0, which PowerInfer has not, want fewer neurons than this times those at 0

Thresholds = list[list[float | None]]
"""``thresholds[layer][expert]``; None where there is no predictor."""
LayerPredictors = Callable[[int], Sequence[Predictor | None]]
"""Gives those of layer i, one an expert; asked for several times, so that memory holds one layer's."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Thresholds, and what predictors do with them on held-out text."""

    thresholds: Thresholds
    reports: tuple[FFNReport, ...]
    effect: ModeComparison

    @property
    def density(self) -> float:
        """Share of the neurons that are predicted."""
        used = [report.predicted_density for report in self.reports if report.used]
        return sum(used) / max(1, len(used))

    @property
    def loss(self) -> float:
        """The loss of perplexity, as a share of exact mode's."""
        return self.effect.perplexity_predicted / self.effect.perplexity_exact - 1

    def apply(self, layer: int, row: Sequence[Predictor | None]) -> list[Predictor | None]:
        """The predictors of ``layer`` with these thresholds."""
        return _at(row, self.thresholds[layer])


def calibrate_model(
    layers: LayerPredictors, checkpoint: Checkpoint, exact: Stream, held: slice, target_energy: float, max_loss: float,
    bits: Bits,
) -> Calibrated:  # fmt: skip
    """Set the thresholds of a model's predictors, which were trained for threshold 0.

    Tried are 0, the thresholds that keep ``target_energy`` in each FFN, and, until predicted mode costs at most
    ``max_loss``, those that keep more and more. Taken are the fewest neurons within it; where nothing is, which is
    said, what costs least. PowerInfer has no threshold but 0, so others must save something.

    Args:
        exact: the model's stream after the last layer.
        held: its sequences that the predictors were not trained on.
        max_loss: of perplexity against exact mode, such as 0.02.
    """
    energies = [1 - (1 - target_energy) * share for share in _TIGHTER]
    at_zero = [[None if p is None else 0.0 for p in layers(index)] for index in range(checkpoint.spec.layers)]
    zero, found = _tried(layers, at_zero, checkpoint, exact, held, bits, energies)
    ways = [zero]
    for i in range(len(energies)):
        tighter: Thresholds = [[None if at is None else at[i] for at in row] for row in found]
        ways.append(_tried(layers, tighter, checkpoint, exact, held, bits)[0])
        if ways[-1].loss <= max_loss:
            break
    return _best(ways, max_loss)


def _best(ways: Sequence[Calibrated], max_loss: float) -> Calibrated:
    """The first is at threshold 0."""
    zero, others = ways[0], [way for way in ways[1:] if way.loss <= max_loss]
    if zero.loss <= max_loss:
        return min((way for way in others if way.density < _LIKE_ZERO * zero.density), default=zero, key=_density)
    if others:
        return min(others, key=_density)
    best = min(ways, key=lambda way: way.loss)
    note(
        f"predicted mode costs {best.loss:.1%} of the perplexity at its best, more than the {max_loss:.1%} that it may:"
        " train on more tokens, or give a higher --rank"
    )
    return best


def _density(way: Calibrated) -> float:
    return way.density


def _at(row: Sequence[Predictor | None], thresholds: Sequence[float | None]) -> list[Predictor | None]:
    return [
        None if predictor is None or threshold is None else replace(predictor, threshold=threshold)
        for predictor, threshold in zip(row, thresholds, strict=True)
    ]


def _tried(
    layers: LayerPredictors, thresholds: Thresholds, checkpoint: Checkpoint, exact: Stream, held: slice, bits: Bits,
    energies: Sequence[float] = (),
) -> tuple[Calibrated, list[list[list[float] | None]]]:  # fmt: skip
    """What predictors do at ``thresholds``; and of each FFN those that keep ``energies``."""
    stream = Stream(checkpoint, exact.rows_NS[held], str(exact.device))
    reports: list[FFNReport] = []
    found: list[list[list[float] | None]] = []
    with progress("predicted mode", len(thresholds)) as step:
        for index, at in enumerate(thresholds):
            layer, row = stream.layer(index), _at(layers(index), at)
            stream.attend(layer)
            x_TD = torch.cat([part_TD.cpu() for part_TD in stream.inputs(layer)])
            found.append([None] * len(row))
            for ffn, predictor in zip(ffns_of(layer, x_TD, len(x_TD) // _ENERGY_SHARE), row, strict=True):
                if predictor is None:
                    reports.append(left_to_exact(ffn, "as before"))
                    continue
                reports.append(judge(ffn, predictor, bits))
                if energies:
                    found[-1][ffn.expert] = energy_thresholds(ffn, predictor, energies)
            feed_forward_predicted(stream, layer, row)
            del layer  # before the next one is read
            step("")
    effect = compare(exact, held, stream, slice(None))
    return Calibrated(thresholds=thresholds, reports=tuple(reports), effect=effect), found
