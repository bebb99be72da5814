"""Energy kept and perplexity over the predicted density, for predictors of several widths.

    python benchmarks/predictor_curve.py SPARSE_MODEL PREDICTORS [PREDICTORS ...] [--tokens 32K]

For each predictor folder and each energy asked for the thresholds are set on the first half of held-out text
(`embedded/text/heldout.txt`), and density, energy, perplexity and KL are measured on its second half. `stored` is the
folder with the thresholds that it came with. No training.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tsconvert.common.units import parse_count
from tsconvert.embedded import text
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.layers import Layer
from tsconvert.model.sweep import Stream, sweep
from tsconvert.predictors.calibration.ffn import judge, thresholds
from tsconvert.predictors.calibration.predicted_mode import compare, predicted_stream
from tsconvert.predictors.cost import Bits
from tsconvert.predictors.energy import FFN, ffns_of
from tsconvert.predictors.folder import PredictorSet, load_predictors
from tsconvert.predictors.predictor import Predictor
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sources import Source

ENERGIES = (0.95, 0.97, 0.98, 0.985, 0.99, 0.995)


class Thresholds:
    """The sweep's visitor: thresholds on the first half of the tokens, what they do on the second."""

    def __init__(self, predictors: PredictorSet, tokens: int) -> None:
        self.predictors, self.half = predictors, tokens // 2
        self.made: dict[float | None, list[list[Predictor | None]]] = {}
        self.reports: dict[float | None, list[Any]] = {}

    def visit(self, layer: Layer, stream: Stream) -> str:
        x_TD = torch.cat(list(stream.inputs(layer)))
        first = ffns_of(layer, x_TD[: self.half], self.half // 4)  # what energies are measured by, and what calibrates
        second = ffns_of(layer, x_TD, self.half)
        rows = [
            [None] * (1 + len(ENERGIES)) if predictor is None else at_energies(predictor, ffn)
            for predictor, ffn in zip(self.predictors.ffns[layer.index], first, strict=True)
        ]
        for i, energy in enumerate((None, *ENERGIES)):
            made = [row[i] for row in rows]
            self.made.setdefault(energy, []).append(made)
            self.reports.setdefault(energy, []).extend(
                judge(ffn, predictor, Bits(model=8.5, predictor=8.5))
                for predictor, ffn in zip(made, second, strict=True)
                if predictor is not None
            )
        return ""


def at_energies(predictor: Predictor, ffn: FFN) -> list[Predictor]:
    """As stored, then with the threshold for each of ENERGIES."""
    return [predictor, *(replace(predictor, threshold=t) for t in thresholds(ffn, predictor, ENERGIES))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("predictors", nargs="+", type=Path)
    parser.add_argument("--tokens", type=parse_count, default=32_000)
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint(arguments.model)
    source = Source(path=str(text("heldout.txt")))
    rows = calibration_rows(checkpoint, (source,), tokens=arguments.tokens, context=arguments.context)
    rows_NS = torch.from_numpy(rows[: len(rows) // 2 * 2])
    held = slice(len(rows_NS) // 2, None)
    found = []
    print("rank  share  asked   energy  density  predicted  ratio  recall  bytes  perplexity   exact   loss      KL")
    for folder in arguments.predictors:
        predictors = load_predictors(folder, checkpoint.fingerprint)
        visitor = Thresholds(predictors, rows_NS.numel())
        stream = sweep(checkpoint, rows_NS, [visitor])
        for energy, made in visitor.made.items():
            predicted = predicted_stream(checkpoint, rows_NS[held], made.__getitem__, "cpu")
            effect = compare(stream, held, predicted, slice(None))
            row = summary(visitor.reports[energy], energy, checkpoint.spec.parameters, made) | vars(effect)
            row["loss"] = row["perplexity_predicted"] / row["perplexity_exact"] - 1
            found.append(row)
            print(line(row), flush=True)
    settings = vars(arguments) | {"predictors": [str(folder) for folder in arguments.predictors]}
    print(json.dumps({"settings": settings, "rows": found}))


def summary(reports: list[Any], energy: float | None, parameters: int, made: list[list[Any]]) -> dict[str, Any]:
    names = ("rank", "density", "predicted_density", "recall", "energy")
    row = {name: sum(getattr(report, name) for report in reports) / len(reports) for name in names}
    read, exact = (sum(getattr(report, f"bytes_{mode}") for report in reports) for mode in ("predicted", "exact"))
    size = sum(predictor.parameters for layer in made for predictor in layer if predictor is not None)
    return row | {"asked": energy, "size_share": size / parameters, "bytes": read / exact}


def line(row: dict[str, Any]) -> str:
    asked = "stored" if row["asked"] is None else f"{row['asked']:6.3f}"
    return (
        f"{row['rank']:4.0f}  {row['size_share']:5.1%}  {asked}  {row['energy']:6.4f}  {row['density']:7.3f}"
        f"  {row['predicted_density']:9.3f}  {row['predicted_density'] / row['density']:5.2f}  {row['recall']:6.3f}"
        f"  {row['bytes']:5.2f}  {row['perplexity_predicted']:10.2f}  {row['perplexity_exact']:6.2f}"
        f"  {row['loss']:+6.1%}  {row['kl_divergence']:6.4f}"
    )


if __name__ == "__main__":
    main()
