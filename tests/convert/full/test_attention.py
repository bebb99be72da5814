"""Attention in blocks gives what torch's own gives, forward and back."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tsconvert.convert.full.attention import attend_in_blocks, attention, keep_largest_outputs
from tsconvert.model.checkpoint import open_checkpoint
from tsconvert.model.whole_model import sparse_model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [7, 128, 300])
def test_blocks_give_what_torch_gives(length: int, masked: bool):
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, heads, length, 16, generator=generator) for heads in (6, 2, 2))
    mask = torch.ones(length, length, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    mask[1, 0, 5:, :5] = False  # a second text begins there
    found, expected = [], []
    for into, ours in ((found, True), (expected, False)):
        parts = [part.clone().requires_grad_() for part in (query, key, value)]
        if ours:
            out = attention(torch.nn.Module(), *parts, mask if masked else None, scaling=0.3)[0].transpose(1, 2)
        else:
            how = {"attn_mask": mask} if masked else {"is_causal": True}
            out = torch.nn.functional.scaled_dot_product_attention(*parts, **how, scale=0.3, enable_gqa=True)
        (out * torch.arange(16)).sum().backward()
        into += [out.detach(), *(part.grad for part in parts)]
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("window", [None, 20])
def test_a_model_gives_the_same_logits_for_several_texts_in_a_row(window: int | None, autocast: bool):
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, attn_implementation="sdpa", initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(3)
    model, ids = MistralForCausalLM(config).eval(), torch.randint(64, (2, 150))
    position = torch.cat([torch.arange(60), torch.arange(90)])[None].expand(2, -1)

    def logits() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            several = model(ids, position_ids=position, use_cache=False).logits
            return [model(ids).logits.float(), several.float()]

    before = logits()
    attend_in_blocks(model, "cpu")
    assert model.config._attn_implementation == "tsconvert_blocks"
    assert (before[0] - before[1]).abs().max() > 1  # the second text does not see the first
    for ours, theirs in zip(logits(), before, strict=True):
        assert autocast or torch.allclose(ours, theirs, atol=1e-5)
        # bfloat16 of scores rounds otherwise: a few positions are far off, and most would be by a wrong mask
        assert (ours - theirs).abs().amax((0, 2)).quantile(0.9) < 0.1


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_only_the_largest_outputs_are_kept_and_learned_through(make_sparse: Callable[..., Path], family: str):
    """Against the outputs sorted one by one; a number that is left out gets no gradient."""
    checkpoint = open_checkpoint(make_sparse(family))
    model, ids, seen = sparse_model(checkpoint), torch.randint(checkpoint.spec.vocab, (2, 9)), []
    outputs = [layer.self_attn.o_proj for layer in model.model.layers]
    for each in outputs:  # these see what attention puts out
        each.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]) or inputs[0].retain_grad())
    keep_largest_outputs(model, checkpoint.spec, 0.3)
    kept = []
    for each in outputs:  # and these what is left of it
        each.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach()))
    model(ids).logits.square().sum().backward()
    assert len(seen) == len(kept) == checkpoint.spec.layers
    for whole, left in zip(seen, kept, strict=True):
        for number, row in enumerate(whole.detach().flatten(0, 1).tolist()):
            places = sorted(range(len(row)), key=lambda i: -abs(row[i]))[: math.ceil(0.3 * len(row))]
            wanted = torch.zeros(len(row))
            wanted[places] = torch.tensor(row)[places]
            assert torch.equal(left.flatten(0, 1)[number], wanted)
        assert torch.equal(whole.grad == 0, left == 0)
