"""Sparse checkpoints without training, and predictors with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.predictors.folder import PredictorSet, save_predictors
from tsconvert.predictors.predictor import Predictor

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make_sparse(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_sparse("mixtral", activation="reglu", ...): norms that are not all one, values exact in F16."""

    def make(family: str = "mistral", activation: str = "drelu", seed: int = 0, **fields: object) -> Path:
        shape = {"intermediate_size": 1024} if family != "mixtral" else {}
        folder = make_checkpoint(family, seed=seed, **(shape | fields))
        roughen(folder, seed)
        out = tmp_path_factory.mktemp("sparse") / "model"
        relufy(RelufyConfig(model=str(folder), out=out, activation=activation, recover="none", align=False))
        return out

    return make


@pytest.fixture(scope="session")
def drelu(make_sparse: Make) -> Path:
    """A tiny dense dReLU model; not to be changed."""
    return make_sparse()


@pytest.fixture(scope="session")
def drelu_moe(make_sparse: Make) -> Path:
    """A tiny dReLU model of four experts; not to be changed."""
    return make_sparse("mixtral")


@pytest.fixture
def make_predictors(tmp_path: Path) -> Make:
    """make_predictors(model, ranks, thresholds) writes a predictor folder; rank 0 leaves an FFN without one."""

    def make(model: Path, rank: int | list[list[int]] = 24, threshold: float = 0.0, fingerprint: str = "") -> Path:
        checkpoint = open_checkpoint(model)
        spec, rng = checkpoint.spec, np.random.default_rng(7)
        ranks = rank if isinstance(rank, list) else [[rank] * spec.ffns] * spec.layers

        def one(n: int) -> Predictor | None:
            fc1_RD, fc2_FR = steps(rng, n, spec.width), steps(rng, spec.neurons, n)
            return Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR, threshold=threshold) if n else None

        ffns = [[one(n) for n in row] for row in ranks]
        out = tmp_path / "predictors"
        save_predictors(
            PredictorSet(model_fingerprint=fingerprint or checkpoint.fingerprint, ffns=ffns, report={}), out
        )
        return out

    return make


def steps(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Random multiples of 1/16, exact in F16 also after they were multiplied by a norm of halves."""
    return (rng.integers(-16, 17, (rows, columns)) / 16).astype(np.float32)


def roughen(folder: Path, seed: int = 0) -> None:
    """Norms in multiples of a half, some negative."""
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 1:
            signs = torch.where(torch.rand(tensor.shape, generator=generator) < 0.1, -0.5, 0.5)
            tensors[name] = (torch.randint(1, 5, tensor.shape, generator=generator) * signs).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
