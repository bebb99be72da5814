"""The threshold of a predictor, and what it does with it, on tokens that it was not trained on."""

from collections.abc import Sequence

import torch

from ...common import processes
from ..cost import Bits, Rates, exact_bytes, low_rank_bytes, predicted_bytes
from ..energy import FFN
from ..predictor import Predictor
from ..report import FFNReport
from ..torch_predictor import TorchPredictor

# Shape suffixes: T tokens, F neurons, D model width.
_BINS = 1 << 15


def left_to_exact(ffn: FFN, reason: str) -> FFNReport:
    """What is said of an FFN that gets no predictor, and why."""
    return FFNReport(
        layer=ffn.layer.index, expert=ffn.expert, rank=0, used=False, reason=reason,
        tokens=ffn.train_tokens, calibration_tokens=ffn.calibration_tokens,
    )  # fmt: skip


def calibrate(ffn: FFN, predictor: Predictor, target_energy: float) -> float:
    """The highest threshold at which the predicted neurons keep ``target_energy`` of the energy, to one bin."""
    return thresholds(ffn, predictor, (target_energy,))[0]


@torch.no_grad()
def thresholds(ffn: FFN, predictor: Predictor, target_energies: Sequence[float]) -> list[float]:
    """`calibrate` for several energies.

    Two passes over the calibration tokens: the range of the logits, then the energy in each of 32,768 bins of it.
    """
    scores = TorchPredictor(predictor, ffn.device)
    low, high = float("inf"), float("-inf")
    for x_TD in ffn.calibration_blocks():
        z_TF = scores(x_TD)
        low, high = min(low, float(z_TF.min())), max(high, float(z_TF.max()))
    low, high = processes.extremes(low, high)
    edges = torch.linspace(low, high, _BINS)  # the last bin holds what equals the highest logit
    per_unit = (_BINS - 1) / max(high - low, 1e-30)
    energy = torch.zeros(_BINS, dtype=torch.float64, device=ffn.device)
    for x_TD in ffn.calibration_blocks():
        z_TF = scores(x_TD)
        bins = ((z_TF - low) * per_unit).long().clamp_(0, _BINS - 1)
        bins -= (z_TF < edges.to(bins.device)[bins]).long()  # rounding may put a logit one bin too high
        weight = ffn.labels(x_TD).energy_TF.double()
        energy += torch.bincount(bins.flatten().clamp_min(0), weights=weight.flatten(), minlength=_BINS)
    kept = processes.sum_(energy).cpu().flip(0).cumsum(0).flip(0)
    return [float(edges[int((kept >= target * kept[0]).nonzero()[-1])]) for target in target_energies]


@torch.no_grad()
def judge(ffn: FFN, predictor: Predictor, bits: Bits) -> FFNReport:
    """What ``predictor`` does on the calibration tokens."""
    scores = TorchPredictor(predictor, ffn.device)
    sums = [0.0] * 10
    for x_TD in ffn.calibration_blocks():
        z_TF, labels = scores(x_TD), ffn.labels(x_TD)
        chosen_TF, above_0_TF, energy_TF = z_TF >= predictor.threshold, z_TF >= 0, labels.energy_TF
        counted = (
            labels.fires_TF, labels.gate_TF, chosen_TF, chosen_TF & labels.gate_TF, chosen_TF & labels.fires_TF,
            above_0_TF, energy_TF.double(), energy_TF[chosen_TF].double(), energy_TF[above_0_TF].double(),
        )  # fmt: skip
        sums = [old + new for old, new in zip(sums, [z_TF.numel(), *(float(c.sum()) for c in counted)], strict=True)]
    pairs, fired, gate, predicted, gated, hit, predicted_at_0, energy, kept, kept_at_0 = processes.sums(*sums)
    pairs = max(1.0, pairs)
    rates = Rates(
        gate=gate / pairs, fired=fired / pairs, predicted=predicted / pairs, predicted_gate=gated / pairs,
        hit=hit / pairs,
    )  # fmt: skip
    size = low_rank_bytes(ffn.width, ffn.neurons, predictor.rank, bits)
    return FFNReport(
        layer=ffn.layer.index,
        expert=ffn.expert,
        rank=predictor.rank,
        threshold=predictor.threshold,
        tokens=ffn.train_tokens,
        calibration_tokens=ffn.calibration_tokens,
        density=rates.fired,
        gate_density=rates.gate,
        predicted_density=rates.predicted,
        recall=_share(hit, fired),
        precision=_share(hit, predicted),
        energy=_share(kept, energy),
        energy_at_zero=_share(kept_at_0, energy),
        predicted_density_at_zero=predicted_at_0 / pairs,
        bytes_predicted=predicted_bytes(ffn.width, ffn.neurons, size, rates, bits),
        bytes_exact=exact_bytes(ffn.width, ffn.neurons, rates, bits),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
