"""Whole models: logits against transformers, modes and threads against each other, counters against a slow twin."""

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.runner.model import load

SPARSE = [("mistral", "drelu", "sparse"), ("mistral", "reglu", "powerinfer"), ("mistral", "drelu", "powerinfer")]
SPARSE += [("mixtral", "drelu", "sparse"), ("mistral", "reglu", "sparse")]
DENSE = [("mistral", "swiglu", "llama.cpp"), ("mixtral", "swiglu", "llama.cpp"), ("mistral", "swiglu", "sparse")]


def error(ours, reference):
    """Largest difference over largest value."""
    return np.abs(ours - reference).max() / np.abs(reference).max()


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize(("family", "activation", "target"), SPARSE + DENSE)
def test_dense_logits_are_those_of_transformers(tiny, gguf_of, tmp_path, prompt, family, activation, target, dtype):
    model = tiny(family, activation)
    path = gguf_of(model, tmp_path / "m.gguf", target, dtype)
    with load(path, threads=2, mode="dense", cache_type="F32") as ours:
        assert error(ours.logits(prompt), model.logits(prompt)) < 2e-5


@pytest.mark.parametrize("changes", [{"tied": True}, {"window": 8}, {"window": 1}])
def test_tied_heads_and_sliding_windows(tiny, gguf_of, tmp_path, prompt, changes):
    model = tiny(**changes)
    with load(gguf_of(model, tmp_path / "m.gguf", "sparse"), threads=1, cache_type="F32") as ours:
        assert error(ours.logits(prompt), model.logits(prompt)) < 2e-5


@pytest.mark.parametrize("dtype", ["Q8_0", "Q4_0", "Q5_1"])
def test_block_types_stay_close_to_their_decoded_weights(tiny, gguf_of, tmp_path, prompt, dtype):
    """The file's own decoded weights as F32 are the reference: what is left is the rounding of activations to Q8."""
    model = tiny("mistral", "drelu", num_hidden_layers=3)
    blocks = gguf_of(model, tmp_path / "q.gguf", "sparse", dtype)
    decoded = gguf_of(model, tmp_path / "f.gguf", "sparse", "F32", through=dtype)
    with load(blocks, threads=1, mode="dense") as q, load(decoded, threads=1, mode="dense") as f:
        ours, reference = q.logits(prompt), f.logits(prompt)
    assert np.corrcoef(ours.ravel(), reference.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize(("family", "activation", "target"), SPARSE)
def test_exact_is_dense_with_fewer_rows(tiny, gguf_of, tmp_path, prompt, family, activation, target, dtype):
    path = gguf_of(tiny(family, activation), tmp_path / "m.gguf", target, dtype)
    with load(path, threads=2, mode="dense") as model:
        dense = model.logits(prompt)
        assert model.density.read == 1
        model.mode = "exact"
        model.reset_density()
        assert error(model.logits(prompt), dense) < 1e-5
        density = model.density
    assert (density.gate == 1).all()
    assert (density.up < 0.75).all()
    np.testing.assert_array_equal(density.down, density.fired)


def by_threads(path, prompt, **options):
    """Logits with 1, 2, 3 and 5 threads: of a block, then token by token."""
    for threads in (1, 2, 3, 5):
        with load(path, threads=threads, **options) as model:
            block_TV = model.logits(prompt[:-6])
            yield np.concatenate([block_TV, [model.feed([token]) for token in prompt[-6:]]])


@pytest.mark.parametrize("kind", [*SPARSE, *DENSE])
def test_the_number_of_threads_changes_no_bit(tiny, gguf_of, tmp_path, prompt, make_predictors, kind):
    family, activation, target = kind
    model = tiny(family, activation)
    fcs = None if activation == "swiglu" else make_predictors(model)
    thresholds = 0.0 if target == "powerinfer" else fcs and np.zeros((3, max(1, model.experts)))
    path = gguf_of(model, tmp_path / "m.gguf", target, "Q8_0", fcs, thresholds)
    for mode in ("auto", "dense"):
        first, *others = by_threads(path, prompt, mode=mode)
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(
    "dtype", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K", "Q5_K", "IQ4_XS"]
)
def test_the_number_of_threads_changes_no_bit_in_any_type(tiny, gguf_of, tmp_path, prompt, dtype):
    path = gguf_of(tiny("mistral", "drelu", hidden_size=256), tmp_path / "m.gguf", "sparse", dtype)
    first, *others = by_threads(path, prompt)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("mode", ["dense", "exact"])
@pytest.mark.parametrize("dtype", ["Q4_0", "Q8_0", "Q4_K"])
def test_the_number_of_threads_changes_no_bit_with_experts(tiny, gguf_of, tmp_path, prompt, dtype, mode):
    path = gguf_of(tiny("mixtral", "drelu", hidden_size=256), tmp_path / "m.gguf", "sparse", dtype)
    first, *others = by_threads(path, prompt, mode=mode)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    "kind", [("drelu", "sparse", 1.5), ("reglu", "powerinfer", -0.5), ("reglu", "sparse", 2.5, "linear_predictors")]
)
def test_predicted_computes_what_the_predictors_name(
    tiny, gguf_of, tmp_path, prompt, make_predictors, kind, threads, dtype
):
    activation, target, threshold, *features = kind
    model = tiny("mistral", activation)
    fcs = make_predictors(model)
    fcs[1] = None
    thresholds = np.array([threshold, np.nan, threshold], np.float32)
    version = {"keys": {"turbosparse.features": features}, "overrides": {"format_version": 2}} if features else {}
    path = gguf_of(
        model, tmp_path / "m.gguf", target, dtype, fcs, threshold if target == "powerinfer" else thresholds, **version
    )
    twin = model.logits(prompt, fcs, thresholds, pre_norm=target == "powerinfer", linear=bool(features))
    with load(path, threads=threads, cache_type="F32") as ours:
        assert ours.mode == "predicted"
        assert error(ours.logits(prompt), twin) < 2e-5
        assert not ours.density.missed.any()
        ours.audit = True
        ours.reset_density()
        assert error(ours.logits(prompt), twin) < 2e-5
        density = ours.density
    blocks = [layer.mlp for layer in model.model.model.layers]
    for name in ("fired", "missed", "predicted"):
        np.testing.assert_allclose(getattr(density, name), [getattr(block, name)[0] for block in blocks], atol=1e-6)
    assert density.predicted[1] == 0
    assert density.recall[1] == 1
    assert 0 < density.recall[0] < 1


def test_every_expert_has_a_predictor_of_its_own_or_runs_exact(tiny, gguf_of, tmp_path, prompt, make_predictors):
    model = tiny("mixtral", "drelu")
    fcs = make_predictors(model)
    thresholds = np.full((3, 4), 0.5, np.float32)
    thresholds[1, 2] = thresholds[2] = np.nan
    path = gguf_of(model, tmp_path / "m.gguf", "sparse", "F32", fcs, thresholds)
    with load(path, threads=2, cache_type="F32") as ours:
        assert error(ours.logits(prompt), model.logits(prompt, fcs, thresholds)) < 2e-5


def test_a_text_in_parts_is_the_text(tiny, gguf_of, tmp_path, prompt):
    path = gguf_of(tiny("mistral", "drelu"), tmp_path / "m.gguf", "sparse")
    with load(path, threads=2) as model:
        whole = model.logits(prompt)
        assert model.position == len(prompt)
        parts = np.concatenate([model.logits(prompt[:7]), model.logits(prompt[7:], reset=False)])
        assert error(parts, whole) < 1e-5
        model.reset()
        assert error(np.stack([model.feed([token]) for token in prompt]), whole) < 1e-5
        with pytest.raises(TsconvertError, match=r"^position is 41: it must be 0 to 40, the tokens in the cache$"):
            model.reset(position=41)
        model.reset(position=7)
        assert error(model.feed(prompt[7:]), whole[-1]) < 1e-5
        np.testing.assert_array_equal(np.concatenate(list(model.logits_blocks(prompt))), whole)


def test_modes_that_a_file_does_not_allow(tiny, gguf_of, tmp_path, make_predictors):
    swiglu = gguf_of(tiny(), tmp_path / "swiglu.gguf", "llama.cpp")
    drelu = gguf_of(tiny("mistral", "drelu"), tmp_path / "drelu.gguf", "sparse")
    with load(swiglu) as model:
        assert model.mode == "dense"
    with load(drelu) as model:
        assert model.mode == "exact"
        with pytest.raises(TsconvertError, match=r"run it with --sparsity exact, or export it with --predictors$"):
            model.mode = "predicted"
    for mode in ("exact", "predicted"):
        with pytest.raises(TsconvertError) as caught:
            load(swiglu, mode=mode)
        assert str(caught.value) == (
            f"{swiglu}: a SwiGLU model, none of whose neurons is ever zero; run it with --sparsity dense, or make it"
            " sparse with `tsconvert relufy` first"
        )
    with pytest.raises(TsconvertError, match=r"^sparsity is 'fast': it must be one of auto, predicted, exact, dense$"):
        load(drelu, mode="fast")


def test_tokens_and_contexts_are_checked(tiny, gguf_of, tmp_path):
    path = gguf_of(tiny("mistral", "drelu"), tmp_path / "m.gguf", "sparse")
    with load(path, context=8) as model:
        with pytest.raises(TsconvertError, match=r"^token 101 is none of the model's 101; use the model's tokenizer$"):
            model.logits([1, 101])
        model.logits([1] * 8)
        with pytest.raises(TsconvertError) as caught:
            model.feed([1])
        assert str(caught.value) == (
            "9 tokens do not fit into the context of 8; load the model with a larger one (trained for 96) or shorten"
            " the text"
        )
        with pytest.raises(TsconvertError, match=r"^no tokens to go on with; give a prompt$"):
            model.feed([])
        assert model.logits([]).shape == (0, 101)
    with pytest.raises(TsconvertError, match=r"^context is -1: it must be at least 0$"):
        load(path, context=-1)
    with load(path, context=0) as model:  # what the model was trained for, as in llama.cpp
        assert model.context == 96
