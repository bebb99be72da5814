"""Slopes against the divergence itself, measured on transformers' model with one matrix rounded at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.files.gguf import ggml
from tsconvert.quant.imatrix import slopes as slopes_module
from tsconvert.quant.imatrix.slopes import measure_slopes
from tsconvert.quant.types.encoding import quantize
from tsconvert.text.packing import calibration_rows

Make = Callable[..., Path]
PATHS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def rows_of(model: Path | str, tokens: int) -> torch.Tensor:
    return torch.from_numpy(calibration_rows(open_checkpoint(model), (), tokens=tokens, context=128, seed=0))


def test_what_slopes_say_is_what_rounding_does(tmp_path: Path):
    """tiny-mistral, every matrix in Q4_0 by itself, and all of them."""
    rows_NS = rows_of("tiny-mistral", 5120)
    found = measure_slopes(open_checkpoint("tiny-mistral"), rows_NS[:32], tmp_path)
    model = AutoModelForCausalLM.from_pretrained(embedded.folder("tiny-mistral"), dtype=torch.float32).eval()
    weights = {"token_embd.weight": model.model.embed_tokens.weight}
    for index, layer in enumerate(model.model.layers):
        weights |= {f"blk.{index}.{role}.weight": layer.get_submodule(path).weight for role, path in PATHS.items()}
    assert found.keys() == weights.keys()

    @torch.no_grad()
    def predictions() -> torch.Tensor:
        return torch.log_softmax(model(rows_NS[32:]).logits, -1)

    reference = predictions()

    def divergence() -> float:
        return float((reference.exp() * (reference - predictions())).sum(-1).mean())

    expected, measured, rounded = {}, {}, {}
    for name, weight in weights.items():
        plain = weight.detach().numpy().copy()
        rounded[name] = ggml.dequantize(quantize(plain, "Q4_0"), "Q4_0", plain.shape)
        error_C = np.square(rounded[name] - plain).mean(0) / np.square(plain).mean()
        expected[name] = float(found[name][0] @ error_C)
        weight.data = torch.from_numpy(rounded[name])
        measured[name] = divergence()
        weight.data = torch.from_numpy(plain)
    ratios = {name: measured[name] / expected[name] for name in weights}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios
    assert np.median(list(ratios.values())) == pytest.approx(1, abs=0.15)
    for name, weight in weights.items():
        weight.data = torch.from_numpy(rounded[name])
    assert divergence() == pytest.approx(sum(expected.values()), rel=0.2)


@pytest.mark.parametrize("family", ["mixtral", "drelu"])
def test_every_matrix_has_slopes_and_a_killed_run_gives_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
):
    model = request.getfixturevalue("moe" if family == "mixtral" else "drelu")
    checkpoint, rows_NS = open_checkpoint(model), rows_of(model, 384)
    (tmp_path / "whole").mkdir()
    (tmp_path / "died").mkdir()
    whole = measure_slopes(checkpoint, rows_NS, tmp_path / "whole")
    layers, stages = checkpoint.spec.layers, []
    once = slopes_module._Sweeps._once

    def dies(sweeps: object, number: int, work: Callable) -> None:
        stages.append(number)
        if len(stages) == layers + 3:  # within the second layer of the way back
            monkeypatch.setattr(slopes_module._Sweeps, "_once", once)
            raise KeyboardInterrupt
        once(sweeps, number, work)

    monkeypatch.setattr(slopes_module._Sweeps, "_once", dies)
    with pytest.raises(KeyboardInterrupt):
        measure_slopes(checkpoint, rows_NS, tmp_path / "died")
    resumed = measure_slopes(checkpoint, rows_NS, tmp_path / "died")
    assert resumed.keys() == whole.keys()
    assert all(np.array_equal(resumed[name], whole[name]) for name in whole)
    experts = checkpoint.spec.experts or 1
    suffix = "_exps" if checkpoint.spec.experts else ""
    for name in (f"blk.0.ffn_up{suffix}.weight", f"blk.1.ffn_down{suffix}.weight", "blk.1.attn_k.weight"):
        assert whole[name].shape[0] == (experts if "ffn" in name else 1)
        assert (whole[name] >= 0).all()
        assert whole[name].any()
    assert (f"blk.0.ffn_down_t{suffix}.weight" in whole) == checkpoint.spec.sparse
    assert ("blk.0.attn_output_t.weight" in whole) == checkpoint.spec.sparse
    with pytest.raises(TsconvertError) as caught:
        measure_slopes(checkpoint, rows_NS.flip(0), tmp_path / "died")
    assert str(caught.value) == (
        f"{tmp_path / 'died'}: was begun with other settings or another model; remove it or repeat those"
    )
