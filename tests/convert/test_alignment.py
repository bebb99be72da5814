from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsconvert.convert.alignment import SignAlignment
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.model.modeling_turbosparse import activate
from tsconvert.model.tensor_names import Place

Make = Callable[..., Path]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_alignment_keeps_the_larger_energy_of_each_neuron():
    rng = np.random.default_rng(0)
    x_TD, gate_FD, up_FD = (rng.normal(size=shape).astype(np.float32) for shape in ((500, 8), (40, 8), (40, 8)))
    alignment = SignAlignment(40)
    for block_TD in torch.from_numpy(x_TD).split(64):
        alignment.add(block_TD @ torch.from_numpy(gate_FD).T, block_TD @ torch.from_numpy(up_FD).T)
    signs_F, before, after = alignment.signs()

    gate_TF, up_TF = x_TD @ gate_FD.T, x_TD @ up_FD.T  # the slow twin
    energy_TF = (silu(gate_TF) * up_TF) ** 2 * (gate_TF > 0)
    positive_F, total_F = (energy_TF * (up_TF > 0)).sum(0), energy_TF.sum(0)
    assert np.array_equal(signs_F.numpy() < 0, positive_F < total_F - positive_F)
    assert before == pytest.approx(positive_F.sum() / total_F.sum(), rel=1e-5)
    assert after == pytest.approx(np.maximum(positive_F, total_F - positive_F).sum() / total_F.sum(), rel=1e-5)
    assert after > before


def test_signs_do_not_change_swiglu(dense: Path, tmp_path: Path):
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "a", recover="none", tokens=2048, context=128))
    before, after = Checkpoint(dense), Checkpoint(tmp_path / "a")
    flipped = 0
    for layer in range(2):
        signs_F = np.sign(after.array(Place("ffn_up", layer))[:, 0] / before.array(Place("ffn_up", layer))[:, 0])
        for role, signs in (("ffn_up", signs_F[:, None]), ("ffn_down", signs_F[None, :])):
            place = Place(role, layer)
            assert np.array_equal(after.array(place), before.array(place) * signs)
        assert np.array_equal(after.array(Place("ffn_gate", layer)), before.array(Place("ffn_gate", layer)))
        flipped += int((signs_F < 0).sum())
    assert 0 < flipped < 256


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
@pytest.mark.parametrize("activation", ["drelu", "reglu"])
def test_the_checkpoint_loads_by_its_own_code_and_computes_the_activation(
    make_checkpoint: Make, tmp_path: Path, family: str, activation: str
):
    folder = make_checkpoint(family)
    out = tmp_path / "sparse"
    relufy(RelufyConfig(model=str(folder), out=out, recover="none", align=False, activation=activation))
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    ids = torch.randint(3, 4096, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=ids).logits

    def rectified(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return gate.relu() * (up.relu() if activation == "drelu" else up)

    reference = AutoModelForCausalLM.from_pretrained(folder)  # the library's own layers, the activation patched in
    reference.config._experts_implementation = "eager"
    for layer in reference.model.layers:
        mlp = layer.mlp
        if family == "mixtral":
            mlp.experts.act_fn = torch.nn.ReLU()
            if activation == "drelu":
                mlp.experts.forward = _expert_twin(mlp.experts)
        else:
            mlp.forward = lambda x, mlp=mlp: mlp.down_proj(rectified(torch.cat([mlp.gate_proj(x), mlp.up_proj(x)], -1)))
    with torch.no_grad():
        theirs = reference(input_ids=ids).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def _expert_twin(experts: torch.nn.Module) -> Callable[..., torch.Tensor]:
    """Every expert on every token, weighted by zero where it was not chosen."""

    def forward(x_TD: torch.Tensor, choice_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        out_TD = torch.zeros_like(x_TD)
        for expert in range(experts.num_experts):
            gate_TF, up_TF = (x_TD @ experts.gate_up_proj[expert].T).chunk(2, -1)
            share_T = (weight_TK * (choice_TK == expert)).sum(-1, keepdim=True)
            out_TD += share_T * ((gate_TF.relu() * up_TF.relu()) @ experts.down_proj[expert].T)
        return out_TD

    return forward


def test_a_converted_model_generates(dense: Path, tmp_path: Path):
    out = tmp_path / "sparse"
    relufy(RelufyConfig(model=str(dense), out=out, recover="none", align=False))
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=True)
    prompt = tokenizer("The Senate", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=5, do_sample=False).shape[1] == prompt.input_ids.shape[1] + 5


def test_stock_transformers_refuses_to_load_it_as_something_else(dense: Path, tmp_path: Path):
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "sparse", recover="none", align=False))
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", trust_remote_code=False)


def test_activations():
    gate, up = torch.tensor([1.0, -1.0, 2.0, -2.0]), torch.tensor([3.0, 3.0, -3.0, -3.0])
    assert activate(gate, up, "drelu").tolist() == [3.0, 0.0, 0.0, 0.0]
    assert activate(gate, up, "reglu").tolist() == [3.0, 0.0, -6.0, 0.0]
