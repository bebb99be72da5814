"""Which constants steer the price of a prediction best: energy kept at threshold 0 against neurons predicted there.

    python benchmarks/predictor_price.py layers SPARSE_MODEL [--rank 32] [--layers 0,2] [--tokens 8K]
    python benchmarks/predictor_price.py model tiny-mistral [--full-tokens 64K]

layers  one FFN's predictor alone from random weights, and then for 100 steps more at a fifth of the learning rate, as
        it learns beside its layer
model   local recovery with predictors, then the whole model under their mask, with thresholds left at 0

98 % of the energy is asked for. Each line is the mean over layers and the seeds, with the largest distance from
98 %: what a good price has is a small distance, and few neurons predicted at it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import fmean

import torch

from tsconvert.common.units import parse_count
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.config.masked import JointConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.sweep import Stream
from tsconvert.predictors.calibration.ffn import judge
from tsconvert.predictors.config import Training
from tsconvert.predictors.cost import Bits
from tsconvert.predictors.energy import FFN
from tsconvert.predictors.predictor import Predictor
from tsconvert.predictors.training import price
from tsconvert.predictors.training.layer_candidates import layer_ffns
from tsconvert.predictors.training.trainer import PredictorTrainer
from tsconvert.text.packing import calibration_rows
from tsconvert.text.sequences import Sequences

TARGET = 0.98
CONSTANTS = ((0.2, 0.1), (0.2, 0.03), (0.1, 0.1), (0.1, 0.03))
"""Smoothing and gain."""
SEEDS = range(3)
Found = dict[str, float]


def alone(ffn: FFN, rank: int, seed: int) -> Iterator[tuple[str, Found]]:
    """A predictor after 400 steps alone, and after 100 more."""
    weights = None
    for name, steps in (("alone", 400), ("then on", 100)):
        generator = torch.Generator().manual_seed(seed)
        trainer = PredictorTrainer(ffn, rank, TARGET, Training(steps=steps).on("cpu"), generator, weights)
        trainer.train(generator)
        weights = (trainer.fc1_RD.clone(), trainer.fc2_FR.clone())
        report = judge(ffn, Predictor(fc1_RD=weights[0].numpy(), fc2_FR=weights[1].numpy()), Bits())
        yield name, {"energy": report.energy_at_zero, "predicted": report.predicted_density_at_zero}


def of_layers(arguments: argparse.Namespace) -> Iterator[tuple[tuple[float, float], str, Found]]:
    checkpoint = open_checkpoint(arguments.model)
    rows = calibration_rows(checkpoint, (), tokens=arguments.tokens, context=256)
    sequences = Sequences(rows, 8)
    stream = Stream(checkpoint, sequences.rows_NS)
    for index in range(max(arguments.layers) + 1):
        layer = stream.layer(index)
        stream.attend(layer)
        if index in arguments.layers:
            (ffn,) = layer_ffns(layer, stream, sequences.train_tokens)
            for seed, constants in product(SEEDS, arguments.constants):
                price.SMOOTHING, price.GAIN = constants
                for name, found in alone(ffn, arguments.rank, seed):
                    yield constants, name, found
        stream.feed_forward(layer)


def of_model(arguments: argparse.Namespace) -> Iterator[tuple[tuple[float, float], str, Found]]:
    """All constants train on from what one local recovery made."""
    how = {"tokens": arguments.tokens, "context": 256}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            local, first = Path(folder, "local"), JointConfig(out=Path(folder, "first"), rank=arguments.rank)
            training = LocalRecovery(steps=40, batch_tokens=1024, target_sparsity=0.88)
            price.SMOOTHING, price.GAIN = arguments.constants[0]
            relufy(
                RelufyConfig(model=arguments.model, out=local, seed=seed, predictors=first, training=training, **how)
            )
            for i, constants in enumerate(arguments.constants):
                price.SMOOTHING, price.GAIN = constants
                joint = JointConfig(out=Path(folder, f"predictors{i}"), start=first.out)
                full = FullRecovery(
                    tokens=arguments.full_tokens, batch_tokens=1024, micro_tokens=512, evaluations=1,
                    target_sparsity=0.88,
                )  # fmt: skip
                report = relufy(
                    RelufyConfig(
                        model=str(local), teacher=arguments.model, out=Path(folder, f"out{i}"), recover="full",
                        full=full, seed=seed, predictors=joint, **how,
                    )
                )  # fmt: skip
                last = report.full.evaluations[-1]
                for ffn in report.predictors.ffns:
                    yield constants, "whole model", {
                        "energy": ffn.energy_at_zero, "predicted": ffn.predicted_density_at_zero,
                        "perplexity": last.perplexity, "masked perplexity": last.predicted_perplexity,
                    }  # fmt: skip


def pairs(text: str) -> tuple[tuple[float, float], ...]:
    return tuple((float(a), float(b)) for a, b in (pair.split(",") for pair in text.split(";")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constants", type=pairs, default=CONSTANTS, help="smoothing,gain;smoothing,gain...")
    parser.add_argument("what", choices=["layers", "model"])
    parser.add_argument("model")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--layers", type=lambda text: [int(layer) for layer in text.split(",")], default=[1])
    parser.add_argument("--tokens", type=parse_count, default=8_000)
    parser.add_argument("--full-tokens", type=parse_count, default=64_000)
    arguments = parser.parse_args()
    found: dict[tuple[tuple[float, float], str], list[Found]] = {}
    for constants, name, values in (of_layers if arguments.what == "layers" else of_model)(arguments):
        found.setdefault((constants, name), []).append(values)
        print(constants, name, values, file=sys.stderr, flush=True)
    rows = []
    for ((smoothing, gain), name), each in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        row = {"smoothing": smoothing, "gain": gain, "training": name}
        row |= {key: round(fmean(values[key] for values in each), 4) for key in each[0]}
        rows.append(row | {"farthest": round(max(abs(values["energy"] - TARGET) for values in each), 4)})
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(json.dumps(vars(arguments) | {"rows": rows}))


if __name__ == "__main__":
    main()
