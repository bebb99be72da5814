"""How long the predictor of one layer trains: the 7B shape, 64k tokens; the making of its labels measured apart.

    python benchmarks/predictor_layer.py                       # width 4096, 14336 neurons, rank 512
    python benchmarks/predictor_layer.py --width 576 --neurons 1536 --rank 64

Weights and inputs are seeded random numbers: time does not depend on them. Run alone on an idle machine.
"""

import argparse
import json
import os
import time
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tsconvert.model.layers import Layer
from tsconvert.predictors.config import Training
from tsconvert.predictors.energy import FFN
from tsconvert.predictors.training.trainer import PredictorTrainer


class Timed(FFN):
    """An FFN that knows how long its labels took."""

    labels_s = 0.0

    def labels(self, x_TD: torch.Tensor, *, autocast: bool = False) -> Any:
        start_s = time.monotonic()
        made = super().labels(x_TD, autocast=autocast)
        self.labels_s += time.monotonic() - start_s
        return made


def layer(width: int, neurons: int) -> Layer:
    shapes = {"gate_proj": (neurons, width), "up_proj": (neurons, width), "down_proj": (width, neurons)}
    weights = {name: nn.Parameter(0.02 * torch.randn(shape), requires_grad=False) for name, shape in shapes.items()}
    mlp = SimpleNamespace(**{name: SimpleNamespace(weight=weight) for name, weight in weights.items()})
    module = SimpleNamespace(mlp=mlp, input_layernorm=SimpleNamespace(weight=torch.ones(width)))
    return Layer(0, module, "drelu", None, None, 0, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--neurons", type=int, default=14336)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=65_536)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    x_TD = torch.randn(arguments.tokens, arguments.width)
    ffn = Timed(layer(arguments.width, arguments.neurons), 0, x_TD, torch.arange(len(x_TD)), len(x_TD) * 7 // 8)
    generator = torch.Generator().manual_seed(0)
    predictor = PredictorTrainer(ffn, arguments.rank, 0.98, Training().on("cpu"), generator)
    start_s = time.monotonic()
    predictor.train(generator)
    elapsed_s = time.monotonic() - start_s
    found = {"training_s": round(elapsed_s - ffn.labels_s, 1), "labels_s": round(ffn.labels_s, 1)}
    print("  ".join(f"{name} {value}" for name, value in found.items()))
    print(json.dumps(vars(arguments) | found | {"threads": torch.get_num_threads(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
