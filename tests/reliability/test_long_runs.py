"""Memory does not grow: over 2,000 generated tokens, and over 200 sweeps."""

import gc
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tsconvert import load
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.sweep import sweep
from tsconvert.predictors.profile.profile import ProfileConfig, profile
from tsconvert.quant.export import ExportConfig, export_unverified

TOKENS, SWEEPS = 2000, 200
ALLOWED_BYTES = 4 << 20


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dense", "exact"])
def test_memory_does_not_grow_over_2000_generated_tokens(make_checkpoint, tmp_path: Path, mode: str):
    model = make_checkpoint("mistral", max_position_embeddings=4096)
    if mode == "exact":
        from tsconvert.convert.config import RelufyConfig
        from tsconvert.convert.relufy import relufy

        relufy(RelufyConfig(model=str(model), out=tmp_path / "sparse", recover="none", align=False))
        model = tmp_path / "sparse"
    export_unverified(ExportConfig(model=model, out=tmp_path / "m.gguf", type_name="Q8_0"))
    seen = []
    with load(tmp_path / "m.gguf", mode=mode, context=TOKENS + 64) as running:
        for number, _ in enumerate(running.generate("The", limit=TOKENS, stop_at_eos=False)):
            if number in (TOKENS // 10, TOKENS - 1):
                seen.append(resident_bytes())
    assert len(seen) == 2, "fewer tokens were generated"
    assert seen[1] - seen[0] < ALLOWED_BYTES


def looks_at_inputs(model: Path) -> Callable[[], object]:
    checkpoint, rows_NS = open_checkpoint(str(model)), torch.arange(1024).reshape(8, 128)

    class Visitor:
        def visit(self, layer, stream) -> str:
            assert np.isfinite([float(x_TD.sum()) for x_TD in stream.inputs(layer)]).all()
            return ""

    return lambda: sweep(checkpoint, rows_NS, [Visitor()], "cpu")


def profiles(model: Path) -> Callable[[], object]:
    return lambda: profile(ProfileConfig(model=str(model), tokens=1024, context=128))


@pytest.mark.slow
@pytest.mark.parametrize("work", [looks_at_inputs, profiles])
def test_memory_does_not_grow_over_200_sweeps(make_checkpoint, tmp_path: Path, work: Callable):
    from tsconvert.convert.config import RelufyConfig
    from tsconvert.convert.relufy import relufy

    dense = make_checkpoint("mistral")
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "sparse", recover="none", align=False))
    again = work(tmp_path / "sparse")
    for _ in range(SWEEPS // 10):
        again()
    before = resident_bytes()
    for _ in range(SWEEPS - SWEEPS // 10):
        again()
    assert resident_bytes() - before < ALLOWED_BYTES
