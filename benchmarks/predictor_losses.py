"""Which loss trains the best predictor: the density that each must predict to keep the same energy.

    python benchmarks/predictor_losses.py SPARSE_MODEL [--rank 32] [--layers 0,2,4]

energy      the project's: a neuron's weight is its share of the energy, predicting has a steered price (training.py)
bce         binary cross-entropy on whether the neuron fires
weighted    the same, silent neurons weighted with the density + 0.005 (DejaVu, arXiv 2310.17157)
focal       the same with (1 - p)^2 (arXiv 1708.02002)
energy-bce  binary cross-entropy, firing neurons weighted with their share of the energy, silent ones with 1

All with AdamW, the same steps, batches, rates and start; thresholds set on the calibration tokens (`Labels.energy_TF`).
Shape suffixes: T tokens, D model width, F neurons, R predictor rank.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import softplus

from tsconvert.common.units import parse_count
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.layers import Layer
from tsconvert.model.sweep import Stream, sweep
from tsconvert.predictors.calibration import calibrate, judge
from tsconvert.predictors.cost import Bits
from tsconvert.predictors.energy import FFN, Labels
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.scores import logits
from tsconvert.predictors.training import LowRank, Training, _start
from tsconvert.predictors.trials import layer_ffns
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sequences import Sequences

Loss = Callable[[torch.Tensor, Labels], torch.Tensor]
"""Of logits [T, F] and labels, summed over neurons."""


def bce(z_TF: torch.Tensor, labels: Labels) -> torch.Tensor:
    fires_TF = labels.fires_TF
    return torch.where(fires_TF, softplus(-z_TF), softplus(z_TF)).sum()


def weighted(z_TF: torch.Tensor, labels: Labels) -> torch.Tensor:
    silent = float(labels.fires_TF.float().mean()) + 0.005
    return torch.where(labels.fires_TF, softplus(-z_TF), silent * softplus(z_TF)).sum()


def focal(z_TF: torch.Tensor, labels: Labels) -> torch.Tensor:
    toward_TF = torch.where(labels.fires_TF, z_TF, -z_TF)
    return ((-toward_TF).sigmoid().square() * softplus(-toward_TF)).sum()


def energy_bce(z_TF: torch.Tensor, labels: Labels) -> torch.Tensor:
    weight_TF = labels.energy_TF / labels.energy_TF.mean()
    return torch.where(labels.fires_TF, weight_TF * softplus(-z_TF), softplus(z_TF)).sum()


LOSSES: dict[str, Loss | None] = {
    "energy": None, "bce": bce, "weighted": weighted, "focal": focal, "energy-bce": energy_bce
}  # fmt: skip


def train(ffn: FFN, rank: int, how: Training, target_energy: float, loss: Loss | None) -> Predictor:
    generator = torch.Generator().manual_seed(0)
    learning = LowRank(ffn, rank, target_energy, how, generator)
    if loss is None:
        learning.train(generator)
        return Predictor(fc1_RD=learning.fc1_RD.numpy(), fc2_FR=learning.fc2_FR.numpy())
    weights = [part.requires_grad_() for part in _start(ffn, rank, torch.Generator().manual_seed(0))]
    groups = [{"params": [weight], "lr": 0.0} for weight in weights]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in range(how.steps):
        for group, peak in zip(optimizer.param_groups, learning.peaks, strict=True):
            group["lr"] = peak * learning.rate(step)
        x_TD = ffn.inputs(ffn.own(torch.randint(ffn.train_tokens, (how.batch_tokens,), generator=generator)))
        optimizer.zero_grad()
        with torch.enable_grad():
            (loss(logits(x_TD, *weights), ffn.labels(x_TD)) / len(x_TD)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    fc1_RD, fc2_FR = (weight.detach().half().float().numpy() for weight in weights)
    return Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR)


class Compare:
    """The sweep's visitor."""

    def __init__(self, arguments: argparse.Namespace, layers: set[int], train_tokens: int) -> None:
        self.arguments, self.layers, self.train_tokens = arguments, layers, train_tokens
        self.rows: list[dict[str, Any]] = []

    def visit(self, layer: Layer, stream: Stream) -> str:
        if layer.index not in self.layers:
            return ""
        ffn = max(layer_ffns(layer, stream, self.train_tokens), key=lambda each: each.train_tokens)
        how, asked = Training(steps=self.arguments.steps).on("cpu"), self.arguments.energies
        for name, loss in LOSSES.items():
            for target in asked:
                predictor = train(ffn, self.arguments.rank, how, target, loss)
                for energy in [target] if loss is None else asked:
                    self._row(ffn, name, predictor, energy)
                if loss is not None:
                    break  # they know no target
        return ""

    def _row(self, ffn: FFN, name: str, predictor: Predictor, energy: float) -> None:
        at = Predictor(
            fc1_RD=predictor.fc1_RD, fc2_FR=predictor.fc2_FR, threshold=calibrate(ffn, predictor, energy)
        )  # fmt: skip
        report = judge(ffn, at, Bits())
        row = {"layer": ffn.layer.index, "loss": name, "energy": energy, "density": report.density}
        row |= {"predicted": report.predicted_density, "recall": report.recall}
        print(
            "  ".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()), flush=True
        )
        self.rows.append(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=parse_count, default=32_000)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", help="default: the second, the middle and the last")
    parser.add_argument("--energies", type=lambda text: list(map(float, text.split(","))), default=[0.95, 0.98])
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    count = checkpoint.spec.layers
    layers = set(map(int, arguments.layers.split(","))) if arguments.layers else {1, count // 2, count - 1}
    sequences = Sequences(calibration_rows(checkpoint, (), tokens=arguments.tokens, context=512), 8)
    visitor = Compare(arguments, layers, sequences.train_tokens)
    print("layer  loss  energy  density  predicted  recall")
    sweep(checkpoint, sequences.rows_NS, [visitor])
    means = {}
    for name, energy in dict.fromkeys((row["loss"], row["energy"]) for row in visitor.rows):
        rows = [row for row in visitor.rows if (row["loss"], row["energy"]) == (name, energy)]
        means[f"{name} {energy}"] = {
            key: round(sum(r[key] for r in rows) / len(rows), 4) for key in ("predicted", "recall")
        }
    for name, values in means.items():
        print(f"{name:18} {values}")
    print(json.dumps({"settings": vars(arguments), "means": means, "rows": visitor.rows}))


if __name__ == "__main__":
    main()
