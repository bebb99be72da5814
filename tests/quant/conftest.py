"""Predictors with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.predictors.folder import PredictorSet, save_predictors
from tsconvert.predictors.predictor import Predictor

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def drelu(make_sparse: Make) -> Path:
    """A tiny dReLU model with rows of a whole K-quant block in each matrix; not to be changed."""
    return make_sparse(intermediate_size=1024)


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
