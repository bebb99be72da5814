"""A norm in autocast's type is transformers' own, forward and back."""

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tsconvert.convert.full.norms import norm_in_one_type


def slopes(norm: torch.nn.Module, x: torch.Tensor, down: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    norm.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    (out.float() * down).sum().backward()
    return [out.detach().float(), x.grad, norm.weight.grad.clone()]


@pytest.mark.parametrize("shape", [(2, 5, 96), (2, 5, 3, 96)])
def test_a_norm_is_transformers_own(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    x, down = (torch.randn(shape, generator=generator) for _ in range(2))
    down = down.bfloat16().float()
    norm = LlamaRMSNorm(96, eps=1e-5)
    norm.weight.data = torch.rand(96, generator=generator) + 0.5
    theirs = slopes(norm, x, down)
    norm_in_one_type(torch.nn.ModuleList([norm]), "cpu")
    ours = slopes(norm, x, down)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
    assert torch.allclose(ours[0], theirs[0], rtol=2**-8)
    for own, their in zip(ours[1:], theirs[1:], strict=True):
        assert torch.allclose(own, their, rtol=1e-4, atol=1e-5)


def test_without_autocast_nothing_changes():
    norm, x = LlamaRMSNorm(16), torch.randn(3, 16)
    before = norm(x)
    norm_in_one_type(torch.nn.ModuleList([norm]), "cpu")
    assert torch.equal(norm(x), before)


def test_a_norm_of_other_factors_is_left_alone():
    norm = Gemma3RMSNorm(16)
    norm.weight.data.fill_(0.3)
    norm_in_one_type(torch.nn.ModuleList([norm]), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(3, 16)).dtype == torch.float32
