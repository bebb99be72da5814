"""A real model of thirty layers, whose rounding amplifies any difference: the number of threads makes none."""

from pathlib import Path

import numpy as np
import pytest

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.model import load

pytestmark = [pytest.mark.peer, pytest.mark.slow]
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q4_K_M", "Q6_K", "Q4_1", "Q5_K", "IQ4_XS")


@pytest.fixture(scope="module")
def sparse(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with dReLU in place of SwiGLU, not recovered."""
    out = tmp_path_factory.mktemp("sparse") / "model"
    relufy(RelufyConfig(model=str(smollm2), out=out, recover="none", align=False))
    return out


@pytest.mark.parametrize("dtype", TYPES)
def test_smollm2_says_the_same_with_any_number_of_threads(sparse: Path, tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "m.gguf"
    export_unverified(ExportConfig(model=sparse, out=file, type_name=dtype))
    tokens = np.random.default_rng(3).integers(0, 49152, 24).tolist()
    for mode in ("exact", "dense"):
        said = []
        for threads in (1, 2, 3):
            with load(file, threads=threads, mode=mode) as model:
                block_TV = model.logits(tokens[:20])
                said.append(np.concatenate([block_TV, [model.feed([token]) for token in tokens[20:]]]))
        np.testing.assert_array_equal(said[1], said[0])
        np.testing.assert_array_equal(said[2], said[0])
