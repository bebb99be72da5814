from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model import sweep as sweep_module
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.sweep import Stream, sweep

Make = Callable[..., Path]


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randint(3, 4096, (5, 48), generator=torch.Generator().manual_seed(1))


CASES = [
    ("llama", {}),
    ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    ("mistral", {}),
    ("mistral", {"sliding_window": 16, "tie_word_embeddings": True}),
    ("mixtral", {}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "fields"), CASES)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_sweep_gives_the_whole_models_logits(
    make_checkpoint: Make, rows: torch.Tensor, tmp_path: Path, family: str, fields: dict, sparse: bool
):
    folder = make_checkpoint(family, **fields)
    if sparse:
        relufy(RelufyConfig(model=str(folder), out=tmp_path / "s", recover="none", align=False))
        folder = tmp_path / "s"
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=sparse)
    with torch.no_grad():
        out = model(input_ids=rows, labels=rows)
    stream = sweep(Checkpoint(folder), rows, [])
    ours = torch.stack(list(stream.logits(slice(None))))
    assert (ours - out.logits).abs().max() <= 1e-4 * out.logits.abs().max()
    assert stream.cross_entropy(slice(None)) == pytest.approx(float(out.loss), rel=1e-5)


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_the_parts_of_an_ffn_make_up_the_ffn(make_checkpoint: Make, rows: torch.Tensor, family: str):
    stream = Stream(Checkpoint(make_checkpoint(family)), rows, activation="drelu")
    layer = stream.layer(0)
    stream.attend(layer)
    for x_TD in stream.inputs(layer):
        out_TD = torch.zeros_like(x_TD)
        for token, h_TF, part_TD in layer.ffn_parts(x_TD):
            assert (h_TF >= 0).all()
            out_TD.index_add_(0, token, part_TD)
        assert torch.allclose(out_TD, layer.ffn(x_TD), atol=1e-5)


def test_a_mapped_file_holds_what_memory_cannot(dense: Path, rows: torch.Tensor, monkeypatch, tmp_path: Path):
    in_memory = sweep(Checkpoint(dense), rows, []).hidden_NSD.clone()
    monkeypatch.setattr(sweep_module, "IN_MEMORY_BYTES", 1)
    monkeypatch.setattr(sweep_module, "BATCH_TOKENS", 96)
    mapped = sweep(Checkpoint(dense), rows, [])
    assert torch.allclose(mapped.hidden_NSD, in_memory, atol=1e-5)


def test_a_visitor_sees_each_layer_once_and_only_one_is_alive(make_checkpoint: Make, rows: torch.Tensor):
    import gc
    import weakref

    seen, alive = [], []

    class Look:
        def visit(self, layer, stream) -> str:
            gc.collect()
            seen.append(layer.index)
            alive.append(weakref.ref(layer.module))
            assert sum(ref() is not None for ref in alive) == 1
            return ""

    sweep(Checkpoint(make_checkpoint("mistral", num_hidden_layers=6)), rows, [Look()])
    assert seen == list(range(6))
