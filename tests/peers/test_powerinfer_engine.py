"""Real PowerInfer, where powerinfer_tokens was built against it: docs/benchmarks/powerinfer_2cores_2026-11-23.md."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tsconvert.convert.relufy import RelufyConfig, relufy
from tsconvert.predictors.config import PredictorConfig
from tsconvert.predictors.train import train_predictors
from tsconvert.predictors.training import Training
from tsconvert.quant.export import ExportConfig, export_gguf
from tsconvert.runner.model import load

pytestmark = pytest.mark.peer
PROGRAM = os.environ.get("TSCONVERT_POWERINFER_TOKENS", "")
PROMPTS = ("The people of the United States", "The white whale", "Once upon a time")
NEAR_TIE = 0.1  # engines round differently, and a neuron at its threshold may flip


@pytest.mark.skipif(not PROGRAM, reason="set TSCONVERT_POWERINFER_TOKENS to a built powerinfer_tokens")
@pytest.mark.parametrize("name", ["tiny-mistral", "smollm2"])
def test_the_same_ids_and_the_same_tokens(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    dense = str(request.getfixturevalue("smollm2")) if name == "smollm2" else name
    sparse, predictors, out = tmp_path / "sparse", tmp_path / "predictors", tmp_path / "m.gguf"
    relufy(RelufyConfig(model=dense, out=sparse, recover="none", tokens=4096))
    training = Training(steps=40, batch_tokens=256)
    train_predictors(PredictorConfig(model=str(sparse), out=predictors, tokens=4096, rank=32, training=training))
    export_gguf(ExportConfig(model=sparse, out=out, target="powerinfer", predictors=predictors))
    answer = subprocess.run([PROGRAM, out, "64", *PROMPTS], capture_output=True, text=True, check=True)
    lines = [
        [[int(token) for token in half.split()] for half in line.split("|")] for line in answer.stdout.splitlines()
    ]
    with load(out, mode="predicted", threads=1) as model:
        for prompt, (ids, theirs) in zip(PROMPTS, lines, strict=True):
            assert model.tokenizer.encode(prompt) == ids
            ours = [piece.token for piece in model.generate(ids, limit=64, stop_at_eos=False)]
            same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1), 64)
            if same < 64:
                logits_V = np.sort(model.logits([*ids, *theirs[:same]])[-1])
                assert logits_V[-1] - logits_V[-2] < NEAR_TIE
