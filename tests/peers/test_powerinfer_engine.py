"""Real PowerInfer, where powerinfer_tokens was built against it: docs/benchmarks/powerinfer_2cores_2026-11-23.md."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tsconvert.convert.recovery import LocalRecovery
from tsconvert.convert.relufy import RelufyConfig
from tsconvert.predictors.joint import JointConfig, relufy_with_predictors
from tsconvert.predictors.training import Training
from tsconvert.quant.export import ExportConfig, export_gguf
from tsconvert.runner.model import load

pytestmark = pytest.mark.peer
PROGRAM = os.environ.get("TSCONVERT_POWERINFER_TOKENS", "")
PROMPTS = ("The people of the United States", "The white whale", "Once upon a time")
LENGTH = 64
NEAR_TIE = 0.1  # engines round differently in F16, and a neuron at its threshold may flip


@pytest.mark.skipif(not PROGRAM, reason="set TSCONVERT_POWERINFER_TOKENS to a built powerinfer_tokens")
@pytest.mark.parametrize("name", ["tiny-mistral", "smollm2"])
def test_the_same_ids_and_the_same_tokens(name: str, request: pytest.FixtureRequest, tmp_path: Path):
    dense = str(request.getfixturevalue("smollm2")) if name == "smollm2" else name
    sparse, predictors = tmp_path / "sparse", tmp_path / "predictors"
    relufy_with_predictors(
        RelufyConfig(model=dense, out=sparse, tokens=8192, training=LocalRecovery(steps=24)),
        JointConfig(out=predictors, rank=32, training=Training(steps=60)),
    )
    for type_name in ("F32", "F16"):
        out = tmp_path / f"{type_name}.gguf"
        asked = ExportConfig(model=sparse, out=out, type_name=type_name, target="powerinfer", predictors=predictors)
        export_gguf(asked)
        for ids, ours, theirs in generated(out):
            same = next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1), LENGTH)
            if type_name == "F32":
                assert same == LENGTH
            elif same < LENGTH:
                with load(out, mode="predicted", threads=1) as model:
                    logits_V = np.sort(model.logits([*ids, *theirs[:same]])[-1])
                assert logits_V[-1] - logits_V[-2] < NEAR_TIE


def generated(file: Path) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each prompt its token ids, then what the runner and what PowerInfer write."""
    answer = subprocess.run([PROGRAM, file, str(LENGTH), *PROMPTS], capture_output=True, text=True, check=True)
    lines = [
        [[int(token) for token in half.split()] for half in line.split("|")] for line in answer.stdout.splitlines()
    ]
    found = []
    with load(file, mode="predicted", threads=1) as model:
        for prompt, (ids, theirs) in zip(PROMPTS, lines, strict=True):
            assert model.tokenizer.encode(prompt) == ids
            ours = [piece.token for piece in model.generate(ids, limit=LENGTH, stop_at_eos=False)]
            found.append((ids, ours, theirs))
    return found
