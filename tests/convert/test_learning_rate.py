"""The default learning rates follow the size of a model's weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tsconvert import embedded
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.learning_rate import FULL_SHARE, learning_rate
from tsconvert.convert.relufy import relufy


def test_a_step_changes_a_product_by_the_share_asked_for():
    torch.manual_seed(0)
    layer = nn.Linear(300, 200, bias=False)
    nn.init.normal_(layer.weight, std=0.07)
    input_C = torch.randn(300)
    before_R = layer(input_C).detach()
    optimizer = torch.optim.AdamW([layer.weight], lr=learning_rate(0.02, [layer.weight, torch.ones(300)]))
    layer(input_C).sum().backward()  # the gradient has the input's signs: no step changes the product by more
    optimizer.step()
    change_R = layer(input_C).detach() - before_R
    mean_size = (2 / torch.pi) ** 0.5  # of a normal number
    assert change_R.abs().mean().item() == pytest.approx(0.02 * mean_size * before_R.std().item(), rel=0.15)


def test_the_whole_models_rates_are_those_that_were_measured():
    """SmolLM2's (30 layers of such matrices) and tiny-mistral's (3 layers), which a third of it cost 1.7 %."""
    tiny = load_file(embedded.folder("tiny-mistral") / "model.safetensors")
    trained = [tensor for name, tensor in tiny.items() if "layers" in name]
    assert learning_rate(FULL_SHARE, trained, 3) == pytest.approx(6.3e-4, rel=0.1)
    assert learning_rate(FULL_SHARE, trained, 30) == pytest.approx(2e-4, rel=0.1)


def test_a_model_with_smaller_weights_trains_as_well(tmp_path: Path):
    """What norms multiply by 16 and matrices divide by it is the same model, which ends at 1.26 times dense; with its
    rate it would end at 2.2.
    """
    folder = Path(shutil.copytree(embedded.folder("tiny-mistral"), tmp_path / "dense"))
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if "layernorm" in name:
            state[name] = tensor * 16
        elif any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            state[name] = tensor / 16
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    full = FullRecovery(tokens=32_768, evaluations=2)
    report = relufy(
        RelufyConfig(
            model=str(folder), out=tmp_path / "out", activation="tswiglu", tokens=8192, context=256, recover="full",
            training=LocalRecovery(target_sparsity=0.9),
            full=full,
        )
    )  # fmt: skip
    assert report.perplexity < 1.4 * report.dense_perplexity
