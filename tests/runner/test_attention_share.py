"""Attention's output by its inputs: what predicted mode keeps, against transformers with the rest set to zero."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.runner.model import load

SHARE = 0.4
KEYS = {"turbosparse.features": ["attention_share"], "turbosparse.attention.output_share": SHARE}
BY_INPUTS = {"keys": KEYS, "overrides": {"format_version": 2}}


def error(ours, reference):
    """Largest difference over largest value."""
    return np.abs(ours - reference).max() / np.abs(reference).max()


@contextmanager
def largest_only(tiny, share):
    """Within, each token's attention outputs below the largest ``share`` are zero; sizes are told apart to 1/256."""

    def keep(_module, args):
        x = args[0]
        size = x.abs().view(torch.int32) >> 15
        least = size.sort(dim=-1, descending=True).values[..., math.ceil(share * x.shape[-1]) - 1, None]
        return (torch.where(size >= least, x, torch.zeros_like(x)),)

    hooks = [block.self_attn.o_proj.register_forward_pre_hook(keep) for block in tiny.model.model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def biased(tiny):
    """A model of its own whose output matrices have a bias."""
    model = tiny("mistral", "drelu", rope_theta=5000.0)
    for number, block in enumerate(model.model.model.layers):
        bias = np.random.default_rng(number).standard_normal(64).astype(np.float32)
        block.self_attn.o_proj.bias = torch.nn.Parameter(torch.from_numpy(bias))
    yield (
        model,
        {
            f"blk.{number}.attn_output.bias": block.self_attn.o_proj.bias.detach().numpy()
            for number, block in enumerate(model.model.model.layers)
        },
    )
    for block in model.model.model.layers:
        block.self_attn.o_proj.bias = None


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("predicts", [True, False])
@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_predicted_mode_keeps_the_largest(
    tiny, gguf_of, tmp_path, prompt, make_predictors, family, predicts, dtype, threads
):
    model = tiny(family, "drelu")
    fcs = make_predictors(model) if predicts else None
    thresholds = np.full((3, max(1, model.experts)), 0.5, np.float32) if predicts else None
    path = gguf_of(model, tmp_path / "m.gguf", "sparse", dtype, fcs, thresholds, **BY_INPUTS)
    whole = model.logits(prompt)
    with largest_only(model, SHARE):
        twin = model.logits(prompt, fcs, thresholds if model.experts or not predicts else thresholds[:, 0])
    with load(path, threads=threads, cache_type="F32") as ours:
        assert ours.mode == "predicted"
        assert error(ours.logits(prompt), twin) < 2e-5
        assert (ours.density.attended >= SHARE).all()
        assert (ours.density.attended < SHARE + 0.02).all()
        ours.reset()
        assert error(np.stack([ours.feed([token]) for token in prompt]), twin) < 2e-5
        for mode in ("exact", "dense"):
            ours.mode = mode
            ours.reset_density()
            assert error(ours.logits(prompt), whole) < 2e-5
            assert (ours.density.attended == 1).all()
            ours.reset()
            assert error(np.stack([ours.feed([token]) for token in prompt]), whole) < 2e-5


def test_a_bias_is_added_once(biased, gguf_of, tmp_path, prompt):
    model, extra = biased
    keys = KEYS | {"turbosparse.features": ["bias", "attention_share"]}
    path = gguf_of(model, tmp_path / "m.gguf", "sparse", keys=keys, overrides={"format_version": 2}, extra=extra)
    with largest_only(model, SHARE):
        twin = model.logits(prompt)
    with load(path, threads=2, cache_type="F32") as ours:
        assert error(ours.logits(prompt), twin) < 2e-5
        ours.reset()
        assert error(np.stack([ours.feed([token]) for token in prompt]), twin) < 2e-5


@pytest.mark.parametrize("mode", ["predicted", "exact", "dense"])
@pytest.mark.parametrize(("family", "dtype"), [("mistral", "Q4_0"), ("mistral", "Q4_K"), ("mixtral", "Q8_0")])
def test_the_number_of_threads_changes_no_bit(tiny, gguf_of, tmp_path, prompt, family, dtype, mode):
    path = gguf_of(tiny(family, "drelu", hidden_size=256), tmp_path / "m.gguf", "sparse", dtype, **BY_INPUTS)
    found = []
    for threads in (1, 2, 3, 5):
        with load(path, threads=threads, mode=mode) as model:
            block_TV = model.logits(prompt[:-6])
            found.append(np.concatenate([block_TV, [model.feed([token]) for token in prompt[-6:]]]))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def refusal(path):
    with pytest.raises(TsconvertError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("share", [0.0, 1.5, -0.5])
def test_a_share_that_is_none(tiny, gguf_of, tmp_path, share):
    keys = KEYS | {"turbosparse.attention.output_share": share}
    path = gguf_of(tiny("mistral", "drelu"), tmp_path / "m.gguf", "sparse", **BY_INPUTS | {"keys": keys})
    assert refusal(path) == (
        f"turbosparse.attention.output_share is {share:g}, it must be above 0 and at most 1; export it again"
    )


def test_files_that_are_not_what_the_feature_says(tiny, gguf_of, tmp_path):
    keys = {"turbosparse.features": ["attention_share"]}
    path = gguf_of(tiny("mistral", "drelu"), tmp_path / "a.gguf", "sparse", keys=keys, overrides={"format_version": 2})
    assert refusal(path) == (
        "key turbosparse.attention.output_share is None, it must be a number; write the file again"
    )
    path = gguf_of(tiny("mistral", "drelu"), tmp_path / "b.gguf", "sparse", keys=KEYS)
    assert refusal(path) == "tensor blk.0.attn_output.weight is missing; write the file again"
    path = gguf_of(tiny("mistral", "swiglu"), tmp_path / "c.gguf", "sparse", **BY_INPUTS)
    assert refusal(path) == ("feature attention_share of a swiglu model, which has no predicted mode; export it again")
