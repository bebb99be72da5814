"""A small sparse model in which neurons really differ, and a text whose tokens reach it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy

Make = Callable[..., Path]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_sparse(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make_sparse("mixtral", activation="reglu", num_hidden_layers=8) gives the folder of a sparse model."""

    def make(family: str = "mistral", activation: str = "drelu", **fields: object) -> Path:
        out = tmp_path_factory.mktemp("sparse") / family
        dense = make_checkpoint(family, **fields)
        relufy(RelufyConfig(model=str(dense), out=out, activation=activation, recover="none", align=False))
        return out

    return make


@pytest.fixture(scope="session")
def sparse(make_sparse: Make) -> Path:
    """Dense FFNs, dReLU; not to be changed."""
    return make_sparse()


@pytest.fixture(scope="session")
def sparse_moe(make_sparse: Make) -> Path:
    """Four experts, dReLU; not to be changed."""
    return make_sparse("mixtral")
