import math
from pathlib import Path

import numpy as np
import pytest

from tsconvert.common.errors import TsconvertError
from tsconvert.evaluate.perplexity.evaluate import EvalConfig, evaluate
from tsconvert.evaluate.records.reference_logits import LogitsWriter, StoredReference
from tsconvert.evaluate.scoring.divergence import LiveReference, diverge, log_softmax, loss_of
from tsconvert.evaluate.scoring.windowing import Windowing
from tsconvert.evaluate.scoring.windows import Windows
from tsconvert.text.sources import Source

VOCAB, WINDOWS, CONTEXT = 1000, 3, 32


@pytest.fixture
def logits() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two models' logits of each window's counted positions: the second's are the first's and some noise."""
    rng = np.random.default_rng(0)
    ours = [3 * rng.standard_normal((15, VOCAB)).astype(np.float32) for _ in range(WINDOWS)]
    return ours, [each + 0.3 * rng.standard_normal(each.shape).astype(np.float32) for each in ours]


def windows() -> Windows:
    rows_NS = np.random.default_rng(1).integers(0, VOCAB, (WINDOWS, CONTEXT))
    return Windows(rows_NS=rows_NS, first_N=[16] * WINDOWS, corpus_N=[0] * WINDOWS, corpora=["text"])


def compare(reference, ours: list[np.ndarray]):
    rows = windows().rows_NS
    logs = [log_softmax(each) for each in ours]
    loss_P = np.concatenate([loss_of(log_PV, row[17:]) for log_PV, row in zip(logs, rows, strict=True)])
    return diverge(loss_P, [reference.compare(log_PV, row[17:]) for log_PV, row in zip(logs, rows, strict=True)])


def stored(path: Path, of: list[np.ndarray], top: int) -> StoredReference:
    writer = LogitsWriter(path, top)
    for each, row in zip(of, windows().rows_NS, strict=True):
        writer.add(log_softmax(each), row[17:])
    writer.write(windows(), Windowing(context=CONTEXT), "model", "abc")
    return StoredReference(path)


def test_the_whole_vocabulary_stored_gives_the_live_figures(logits, tmp_path: Path):
    ours, theirs = logits
    live = compare(LiveReference("m", iter(theirs)), ours)
    kept = compare(stored(tmp_path / "l.safetensors", theirs, VOCAB), ours)
    for name in vars(live):
        assert getattr(kept, name) == pytest.approx(getattr(live, name), rel=1e-4), name


def test_fewer_tokens_never_give_a_larger_divergence(logits, tmp_path: Path):
    ours, theirs = logits
    found = [compare(stored(tmp_path / f"{k}.safetensors", theirs, k), ours).kl_mean for k in (1, 10, 100, 1000)]
    assert found == sorted(found)
    assert found[2] > 0.8 * found[3]


def test_stored_predictions_do_not_diverge_from_themselves(logits, tmp_path: Path):
    ours, _ = logits
    found = compare(stored(tmp_path / "l.safetensors", ours, 16), ours)
    assert (found.kl_mean, found.kl_max, found.top1_agreement, found.ratio) == (0, 0, 1, 1)


def test_equal_logits_have_one_first_choice(tmp_path: Path):
    level = [np.zeros((15, VOCAB), np.float32) for _ in range(WINDOWS)]
    assert compare(stored(tmp_path / "l.safetensors", level, 5), level).top1_agreement == 1


def test_log_softmax_does_not_overflow():
    logits_PV = np.array([[1000.0, 0.0], [0.0, 0.0]], np.float32)
    assert np.allclose(log_softmax(logits_PV), [[0.0, -1000.0], [-math.log(2)] * 2])


def test_logits_kept_by_eval_are_compared_with_later(dense: Path, make_checkpoint, tmp_path: Path):
    other, file = make_checkpoint("mistral", seed=5), tmp_path / "other.safetensors"
    settings = {"context": 64, "chunks": 4}
    saved = evaluate(EvalConfig(model=str(other), save_logits=file, top=64, **settings))
    live = evaluate(EvalConfig(model=str(dense), against=str(other), **settings))
    report = evaluate(EvalConfig(model=str(dense), against=str(file)))
    assert (report.against, report.kept_logits, report.context) == (str(other), 64, 64)
    assert report.perplexity == live.perplexity
    assert report.against_perplexity == pytest.approx(saved.perplexity, rel=1e-6)
    assert report.perplexity_ratio == pytest.approx(live.perplexity_ratio, rel=1e-6)
    assert report.top1_agreement == live.top1_agreement
    assert 0 < report.kl_mean < live.kl_mean  # random models: their 64 likeliest tokens are a small part
    assert evaluate(EvalConfig(model=str(other), against=str(file))).kl_mean == 0
    assert file.stat().st_size < 4 * 31 * 64 * 6 + 5000


def test_the_file_says_on_which_tokens(dense: Path, tmp_path: Path):
    with pytest.raises(TsconvertError) as caught:
        evaluate(EvalConfig(model=str(dense), against="l.safetensors", data=(Source(path="t.txt"),)))
    assert str(caught.value) == "--against l.safetensors: the file says on which tokens to compare; leave --data out"


def test_files_that_are_no_stored_logits(dense: Path, tmp_path: Path):
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((dense / "model.safetensors").read_bytes()[:100])
    with pytest.raises(TsconvertError, match=r"torn\.safetensors: not a readable safetensors file"):
        evaluate(EvalConfig(model=str(dense), against=str(torn)))
    weights = str(dense / "model.safetensors")
    with pytest.raises(TsconvertError) as caught:
        evaluate(EvalConfig(model=str(dense), against=weights))
    assert str(caught.value) == (
        f"{weights}: not what eval --save-logits writes; give such a file, a model or a GGUF file"
    )
