import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert import models
from tsconvert.convert.corpora import load_tokenizer, spaced_rows
from tsconvert.convert.errors import TsconvertError
from tsconvert.convert.relufy import RelufyConfig, relufy
from tsconvert.evaluate.perplexity import EvalConfig, evaluate, log_softmax

Make = Callable[..., Path]


def whole_model_log_probabilities(folder: Path, tokens: int, context: int, *, code: bool = False) -> tuple:
    """The slow twin: transformers' whole model on the same windows."""
    tokenizer = load_tokenizer(folder)
    text = str(models.text("heldout.txt"))
    rows = torch.from_numpy(spaced_rows(lambda t: tokenizer(t).input_ids, text, tokens=tokens, context=context))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=code)
    with torch.no_grad():
        return rows, model(input_ids=rows).logits[:, :-1].log_softmax(-1)


def test_perplexity_is_that_of_the_whole_model(dense: Path):
    rows, log_NSV = whole_model_log_probabilities(dense, 2048, 128)
    expected = math.exp(-float(log_NSV.gather(-1, rows[:, 1:, None]).mean()))
    report = evaluate(EvalConfig(model=str(dense), tokens=2048, context=128))
    assert report.perplexity == pytest.approx(expected, rel=1e-5)
    assert report.tokens == 2048
    assert report.density == []


def test_divergence_from_another_model(dense: Path, make_checkpoint: Make):
    other = make_checkpoint("mistral", seed=5)
    (_, ours), (_, theirs) = (whole_model_log_probabilities(folder, 1024, 128) for folder in (dense, other))
    report = evaluate(EvalConfig(model=str(dense), tokens=1024, context=128, against=str(other)))
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    assert report.kl_mean == pytest.approx(divergence, rel=1e-4)
    assert report.top1_agreement == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))


def test_a_model_does_not_diverge_from_itself(dense: Path):
    report = evaluate(EvalConfig(model=str(dense), tokens=1024, context=128, against=str(dense)))
    assert report.kl_mean == 0
    assert report.top1_agreement == 1
    assert report.against_perplexity == report.perplexity


def test_density_is_the_share_that_fires(dense: Path, tmp_path: Path):
    relufy(RelufyConfig(model=str(dense), out=tmp_path / "s", recover="none", align=False))
    report = evaluate(EvalConfig(model=str(tmp_path / "s"), tokens=1024, context=128))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "s", trust_remote_code=True)
    fired: list[float] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, x: fired.append(float((x[0] != 0).float().mean())))
    rows, _ = whole_model_log_probabilities(tmp_path / "s", 1024, 128, code=True)
    with torch.no_grad():
        model(input_ids=rows)
    assert report.density == pytest.approx(fired, abs=1e-4)


def test_other_vocabularies_cannot_be_compared(dense: Path, make_checkpoint: Make):
    other = make_checkpoint("mistral", vocab_size=5000)
    with pytest.raises(TsconvertError) as caught:
        evaluate(EvalConfig(model=str(dense), tokens=512, context=128, against=str(other)))
    assert str(caught.value) == ("the models have vocabularies of 4096 and 5000 tokens; compare models of one family")


def test_modes_are_for_gguf_files(dense: Path):
    with pytest.raises(TsconvertError, match="a checkpoint always computes all of its neurons"):
        evaluate(EvalConfig(model=str(dense), mode="predicted"))


def test_log_softmax_does_not_overflow():
    logits_SV = np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32)
    assert np.allclose(log_softmax(logits_SV), [[0.0, -1000.0], [-math.log(2)] * 2])
