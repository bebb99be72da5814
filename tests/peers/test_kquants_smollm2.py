"""The vectorised K-quant encoders on trained weights: a part of every matrix of SmolLM2."""

from pathlib import Path

import numpy as np
import pytest

from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.types.kquants import encoders

WEIGHTS = 1 << 15  # of each of the 211 matrices; ggml encodes 20 million a second


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_smollm2(smollm2: Path, type_name: str):
    checkpoint = open_checkpoint(smollm2)
    matrices = [place for place in checkpoint.places if len(checkpoint.info(place).shape) == 2]
    assert len(matrices) == 211
    rows_RC = np.concatenate([checkpoint.array(place).reshape(-1)[-WEIGHTS:].reshape(-1, 1024) for place in matrices])
    importance_C = np.random.default_rng(3).gamma(0.5, 1, 1024).astype(np.float32)
    for weights_C in (None, importance_C):
        ours = encoders.quantize_rows(rows_RC, type_name, weights_C)
        if ours is None:
            pytest.skip("on this processor ggml encodes")
        np.testing.assert_array_equal(ours, ggml.quantize_chunk(rows_RC, type_name, weights_C))
