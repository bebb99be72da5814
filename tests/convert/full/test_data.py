"""What the whole model is trained on: mixtures, packed texts, conversations, the teacher's own text, and the card."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.config.full import FullRecovery
from tsconvert.convert.config.local import LocalRecovery
from tsconvert.convert.full.data import Rows, full_rows, same_tokenizer
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.whole_model import dense_model
from tsconvert.text.packing import documents
from tsconvert.text.sources import Source
from tsconvert.text.training_rows import IGNORED, Packed

SHORT = FullRecovery(tokens=2048, batch_tokens=512, micro_tokens=256, evaluations=1)


def config(model: Path, out: Path, **fields: object) -> RelufyConfig:
    training = LocalRecovery(steps=5, batch_tokens=256, learning_rate=3e-3, autocast=False)
    base = {"tokens": 2048, "context": 128, "training": training, "recover": "full", "full": SHORT}
    return RelufyConfig(model=str(model), out=out, **(base | fields))


def test_texts_in_a_row_do_not_see_each_other(dense: Path):
    one, two = torch.randint(3, 4096, (2, 24))
    both = Packed(torch.cat([one, two])[None].numpy(), np.eye(1, 48, 0, bool) | np.eye(1, 48, 24, bool))
    row = Rows(both)[0]
    assert row["position_ids"].tolist() == [*range(24), *range(24)]
    assert row["labels"].tolist() == [IGNORED, *one.tolist()[1:], IGNORED, *two.tolist()[1:]]
    model = dense_model(Checkpoint(dense), torch.float32)
    packed = model(input_ids=row["input_ids"][None], position_ids=row["position_ids"][None], use_cache=False).logits
    alone = model(input_ids=two[None], use_cache=False).logits
    assert torch.allclose(packed[0, 24:], alone[0], atol=1e-4)


def test_what_judges_is_not_trained_on(dense: Path, tmp_path: Path):
    run = config(dense, tmp_path / "out")
    swept_NS, _ = documents(Checkpoint(dense), run.data, tokens=run.tokens, context=run.context, seed=run.seed)
    for tokens, judges in ((2048, 1), (10_000, 4), (40_000, 8)):
        train, held = full_rows(Checkpoint(dense), run, replace(SHORT, tokens=tokens), 4)
        judging, trained, swept = (
            {row.tobytes() for row in rows_NS} for rows_NS in (held.rows_NS, train.rows_NS, swept_NS[:-1])
        )
        assert len(held.rows_NS) == len(judging) == judges
        assert swept_NS[-1].tobytes() in judging
        assert len(train.rows_NS) % 4 == 0
        assert len(train.rows_NS) >= tokens // run.context - 4
        assert not judging & (trained | swept)
        assert held.begins_NS.shape == held.rows_NS.shape


def test_an_empty_corpus_and_a_tokenizer_that_does_not_match(dense: Path, make_checkpoint: Callable, tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(TsconvertError, match=r"empty.txt: 0 tokens, which is not one row of 128; give more text"):
        relufy(config(dense, tmp_path / "out", data=(Source(path=str(tmp_path / "empty.txt")),)))
    small = make_checkpoint("mistral", vocab_size=1000)
    with pytest.raises(TsconvertError, match=r"the tokenizer gives token \d+ and the model has 1000 tokens; copy the"):
        relufy(config(small, tmp_path / "out"))
    other = make_checkpoint("mistral")
    words = json.loads((other / "tokenizer.json").read_text())
    words["added_tokens"].append({**words["added_tokens"][-1], "id": 4096, "content": "<new>"})
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(TsconvertError) as caught:
        same_tokenizer(Checkpoint(dense), Checkpoint(other))
    assert str(caught.value) == (
        f"{other}: its tokenizer is not the one of {dense} (they differ in '<new>'); give a teacher that reads the same"
        " tokens"
    )


def test_a_model_is_tuned_on_conversations(talker: Path, tmp_path: Path):
    full = replace(SHORT, chat=str(talker / "chat.jsonl"), tokens=16_384, evaluations=2, learning_rate=1e-3)
    report = relufy(config(talker, tmp_path / "out", full=full))
    assert report.full.evaluations[-1].perplexity < report.full.evaluations[0].perplexity


def test_the_teachers_own_text(dense: Path, tmp_path: Path):
    run = config(dense, tmp_path / "out", recover="local", data=(Source(path="self"),))
    relufy(run)
    lines = (tmp_path / "out.self.jsonl").read_text().splitlines()
    assert len(lines) == 32  # two rounds of 16 texts of 128 tokens
    assert len({json.loads(line)["text"] for line in lines}) == 32


def test_the_card_and_the_baseline(tmp_path: Path):
    out = tmp_path / "sparse"
    report = relufy(config(Path("tiny-mistral"), out, full=replace(SHORT, baseline=True, learning_rate=1e-4)))
    full = report.full
    assert full.baseline == pytest.approx(full.dense_perplexity, rel=0.05)
    assert full.baseline != full.dense_perplexity
    card = (out / "README.md").read_text()
    assert f"| dense, trained on the same tokens | {full.baseline:.2f} |" in card
    assert f"| this model | {full.perplexity:.2f} | {full.perplexity / full.dense_perplexity:.3f} |" in card
    assert "Silent neurons, by layer: " in card
    assert f"| {full.losses[-1][0]} | {full.losses[-1][1]:.4f} |" in card
    assert open_checkpoint(str(out)).spec.sparse
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse.baseline", dtype=torch.float32)
    dense = AutoModelForCausalLM.from_pretrained(embedded.folder("tiny-mistral"), dtype=torch.float32)
    same = {n: torch.equal(w, dense.get_parameter(n)) for n, w in trained.named_parameters()}
    assert same.pop("model.embed_tokens.weight")
    assert not any(same[n] for n in same if "_proj" in n)  # norms move less than their type shows
    assert not (embedded.folder("tiny-mistral") / "tsconvert.json").exists()


def test_a_model_is_trained_on_streamed_text(dense: Path, tmp_path: Path):
    source = Source(path=str(embedded.text("train.txt")))
    report = relufy(config(dense, tmp_path / "out", data=(source,), full=replace(SHORT, stream=True)))
    assert report.full.tokens == 2048
