"""Predictors by method and width: what each must name to keep the same energy, and the bytes that a token then reads.

    python benchmarks/predictor_methods.py SPARSE_MODEL                # a table, then one JSON line
    python benchmarks/predictor_methods.py SPARSE_MODEL --target-energy 0.95 --layers 0,15,29

low-rank  trained, fc2 . relu(fc1 . x), on the FFN's own input
ahead     the same on the input of the FFN one layer before: known earlier, so its reads could be started earlier
svd       truncated SVD of the gate, whitened by the inputs, no training (SVDP, arXiv 2603.14110)
sign      matching sign bits of gate row and input, no training (SparseInfer, arXiv 2411.12692); D F / 8 bytes

Every method's threshold is set on the calibration tokens to keep the energy asked for (Labels.energy_TF).
Shape suffixes: T tokens, D model width, F neurons.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.layers import Layer
from tsconvert.model.sweep import Stream, sweep
from tsconvert.predictors.cost import Bits, Rates, exact_bytes, predicted_bytes
from tsconvert.predictors.energy import FFN
from tsconvert.predictors.linear import truncated_svd
from tsconvert.predictors.scores import logits
from tsconvert.predictors.training import LowRank, Training
from tsconvert.predictors.trials import layer_ffns
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sequences import Sequences

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of inputs and of the inputs one layer before, both [T, D], the scores [T, F]."""


@dataclass(frozen=True)
class Row:
    layer: int
    method: str
    rank: int
    density: float
    predicted: float
    recall: float
    bytes_over_exact: float


class Compare:
    """The sweep's visitor."""

    def __init__(self, layers: set[int], ranks: list[int], target_energy: float, steps: int, train_tokens: int) -> None:
        self.layers, self.ranks, self.target_energy = layers, ranks, target_energy
        self.how = Training(steps=steps).on("cpu")
        self.train_tokens = train_tokens
        self.before_TD: torch.Tensor | None = None
        self.rows: list[Row] = []

    def visit(self, layer: Layer, stream: Stream) -> str:
        ffn = max(layer_ffns(layer, stream, self.train_tokens), key=lambda each: each.train_tokens)
        if layer.index in self.layers:
            for rank in self.ranks:
                self._row(ffn, "low-rank", rank, self._trained(ffn, rank, ahead=False))
                if self.before_TD is not None:
                    self._row(ffn, "ahead", rank, self._trained(ffn, rank, ahead=True))
                fc1_RD, fc2_FR = truncated_svd(ffn, rank, torch.Generator().manual_seed(0))
                self._row(ffn, "svd", rank, lambda x_TD, _, a=fc1_RD, b=fc2_FR: logits(x_TD, a, b))
            sign_FD = ffn.gate_FD.sign()
            self._row(ffn, "sign", 0, lambda x_TD, _: nn.functional.linear(x_TD.sign(), sign_FD))
        self.before_TD = ffn.x_TD
        return ""

    def _trained(self, ffn: FFN, rank: int, *, ahead: bool) -> Score:
        generator = torch.Generator().manual_seed(0)
        predictor = LowRank(ffn, rank, self.target_energy, self.how, generator)
        for step in range(self.how.steps):
            token = ffn.train[torch.randint(len(ffn.train), (self.how.batch_tokens,), generator=generator)]
            x_TD = ffn.inputs(token)
            seen_TD = self.before_TD[token] if ahead and self.before_TD is not None else x_TD
            predictor.step(seen_TD, len(token), predictor.rate(step), ffn.labels(x_TD))
        weights = predictor.fc1_RD, predictor.fc2_FR
        return lambda x_TD, before_TD: logits(before_TD if ahead else x_TD, *weights)

    @torch.no_grad()
    def _row(self, ffn: FFN, method: str, rank: int, score: Score) -> None:
        token = ffn.calibration[:4096]
        x_TD = ffn.inputs(token)
        labels = ffn.labels(x_TD)
        z_TF = score(x_TD, x_TD if self.before_TD is None else self.before_TD[token])
        order = z_TF.flatten().sort(descending=True)
        kept = labels.energy_TF.flatten()[order.indices].double().cumsum(0)
        last = int(torch.searchsorted(kept, self.target_energy * kept[-1]))
        chosen_TF = z_TF >= order.values[min(last, len(order.values) - 1)]
        rates = Rates(
            gate=share(labels.gate_TF), fired=share(labels.fires_TF), predicted=share(chosen_TF),
            predicted_gate=share(chosen_TF & labels.gate_TF), hit=share(chosen_TF & labels.fires_TF),
        )  # fmt: skip
        bits = Bits(model=8.5, predictor=8.5)
        read = predicted_bytes(ffn.width, ffn.neurons, rank, rates, bits)
        if method == "sign":
            read += ffn.width * ffn.neurons / 8
        recall = rates.hit / max(1e-9, rates.fired)
        ratio = read / exact_bytes(ffn.width, ffn.neurons, rates, bits)
        row = Row(ffn.layer.index, method, rank, rates.fired, rates.predicted, recall, ratio)
        print(
            f"{row.layer:5}  {method:9} {rank:4}  {row.density:7.3f}  {row.predicted:9.3f}  {recall:6.3f}"
            f"  {ratio:11.2f}",
            flush=True,
        )
        self.rows.append(row)


def share(mask: torch.Tensor) -> float:
    return float(mask.float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--target-energy", type=float, default=0.98)
    parser.add_argument("--ranks", default="32,64,128")
    parser.add_argument("--layers", help="default: the second, the middle and the last")
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    count = checkpoint.spec.layers
    layers = set(map(int, arguments.layers.split(","))) if arguments.layers else {1, count // 2, count - 1}
    ranks = list(map(int, arguments.ranks.split(",")))
    sequences = Sequences(calibration_rows(checkpoint, (), tokens=arguments.tokens, context=512), 8)
    visitor = Compare(layers, ranks, arguments.target_energy, arguments.steps, sequences.train_tokens)
    print("layer  method    rank  density  predicted  recall  bytes/exact")
    sweep(checkpoint, sequences.rows_NS, [visitor])
    means: dict[str, Any] = {}
    for method, rank in dict.fromkeys((row.method, row.rank) for row in visitor.rows):
        rows = [row for row in visitor.rows if (row.method, row.rank) == (method, rank)]
        means[f"{method} {rank}"] = {
            name: round(sum(getattr(row, name) for row in rows) / len(rows), 4)
            for name in ("predicted", "recall", "bytes_over_exact")
        }
    for name, values in means.items():
        print(f"{name:14} {values}")
    print(json.dumps({"settings": vars(arguments), "means": means, "rows": [vars(row) for row in visitor.rows]}))


if __name__ == "__main__":
    main()
