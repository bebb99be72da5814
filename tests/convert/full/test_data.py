"""What the whole model is trained on: mixtures, packed texts, conversations, the teacher's own text, and the card."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from tsconvert import embedded
from tsconvert.common.errors import TsconvertError
from tsconvert.convert.config import RelufyConfig
from tsconvert.convert.full.config import FullRecovery
from tsconvert.convert.full.data import Rows, full_rows, same_tokenizer
from tsconvert.convert.local.config import LocalRecovery
from tsconvert.convert.relufy import relufy
from tsconvert.model.checkpoint import Checkpoint, open_checkpoint
from tsconvert.model.whole_model import dense_model
from tsconvert.text.conversations import answered, chat_rows, chat_tokenizer
from tsconvert.text.packing import packed_rows
from tsconvert.text.sources import Source, mixture
from tsconvert.text.streams import StreamedRows
from tsconvert.text.training_rows import IGNORED, Packed

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SHORT = FullRecovery(tokens=2048, batch_tokens=512, micro_tokens=256, evaluations=1)


def config(model: Path, out: Path, **fields: object) -> RelufyConfig:
    training = LocalRecovery(steps=5, batch_tokens=256, learning_rate=3e-3, autocast=False)
    base = {"tokens": 2048, "context": 128, "training": training, "recover": "full", "full": SHORT}
    return RelufyConfig(model=str(model), out=out, **(base | fields))


class Letters:
    """A tokenizer of bytes."""

    def __call__(self, text: str):
        return type("Encoded", (), {"input_ids": list(text.encode())})


def test_a_mixture_files_shares(tmp_path: Path):
    for name, letter in (("a", "a"), ("b", "b"), ("c", "c")):
        (tmp_path / f"{name}.txt").write_text(letter * 50_000)
    file = tmp_path / "mix.toml"
    file.write_text('[[source]]\ndata = "a.txt"\nweight = 3\n[[source]]\ndata = "b.txt"\nweight = 1\n')
    rows = packed_rows(
        Letters(), [Source(path=str(file), weight=0.8), Source(path=str(tmp_path / "c.txt"), weight=0.2)],
        tokens=20_000, context=100,
    )[0]  # fmt: skip
    shares = [float((rows == ord(letter)).mean()) for letter in "abc"]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.01)


@pytest.mark.parametrize(
    ("content", "why"),
    [("[[source]]\nweight = 1\n", "'data'"), ("x", "Expected '='"), ('[[source]]\ndata = "a"\nshare = 2\n', "share")],
)
def test_a_mixture_file_that_is_none(tmp_path: Path, content: str, why: str):
    file = tmp_path / "mix.toml"
    file.write_text(content)
    with pytest.raises(TsconvertError, match=r"no mixture file .*; it lists \[\[source\]\] tables") as caught:
        mixture(Source(path=str(file)))
    assert why in str(caught.value)


def test_a_data_sets_subset_split_and_field(tmp_path: Path, monkeypatch):
    records = datasets.Dataset.from_dict({"body": ["one " * 200, "two " * 200]})
    asked: list[object] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or records.to_iterable_dataset())
    source = Source(path="somebody/corpus", subset="en", split="test", field="body")
    assert packed_rows(Letters(), [source], tokens=1000, context=100)[0].shape == (10, 100)
    assert asked == [(("somebody/corpus", "en"), {"split": "test", "streaming": True})]
    with pytest.raises(TsconvertError) as caught:
        packed_rows(Letters(), [replace(source, field="text")], tokens=1000, context=100)[0]
    assert str(caught.value) == (
        "--data somebody/corpus: its records have no field 'text', but body; name one of those as field in a mixture"
        " file (.toml)"
    )


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
    train, held = full_rows(Checkpoint(dense), run, replace(SHORT, tokens=20_000), 4)
    assert len(held.rows_NS) == 1
    assert len(train.rows_NS) % 4 == 0
    assert not {row.tobytes() for row in train.rows_NS} & {row.tobytes() for row in held.rows_NS}


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


@pytest.fixture
def talker(make_checkpoint: Callable) -> Path:
    """A tiny model whose tokenizer has a chat template; and conversations beside it."""
    folder = make_checkpoint("mistral")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    talk = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "The White Whale."}]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": talk * 2}) + "\n" for _ in range(64)))
    return folder


def test_only_answers_are_learnt(talker: Path, tmp_path: Path):
    tokenizer = chat_tokenizer(talker)
    talk = json.loads((talker / "chat.jsonl").read_text().splitlines()[0])["messages"]
    ids, inside = answered(tokenizer, talk)
    learnt = tokenizer.decode([token for token, flag in zip(ids, inside, strict=True) if flag])
    assert learnt.replace(" ", "") == "TheWhiteWhale.</s>\nTheWhiteWhale.</s>\n"
    train, held = chat_rows(
        Checkpoint(talker), config(talker, tmp_path), replace(SHORT, chat=str(talker / "chat.jsonl")), 2
    )  # fmt: skip
    assert len(held.rows_NS) >= 1
    labels = torch.cat([Rows(train)[i]["labels"] for i in range(len(train.rows_NS))])
    share = float((labels != IGNORED).float().mean())
    assert share == pytest.approx(sum(inside) / len(ids), abs=0.02)


def test_a_model_is_tuned_on_conversations(talker: Path, tmp_path: Path):
    full = replace(SHORT, chat=str(talker / "chat.jsonl"), tokens=4096, evaluations=2, learning_rate=3e-3)
    report = relufy(config(talker, tmp_path / "out", full=full))
    assert report.full.evaluations[-1].perplexity < report.full.evaluations[0].perplexity


@pytest.mark.parametrize(("line", "number"), [('{"messages": [{"role": "user"}]}', 2), ("[]", 2), ("[" * 9999, 2)])
def test_what_is_no_conversation(talker: Path, tmp_path: Path, line: str, number: int):
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "?"}]}\n' + line + "\n")
    with pytest.raises(TsconvertError) as caught:
        relufy(config(talker, tmp_path / "out", full=replace(SHORT, chat=str(file))))
    assert str(caught.value) == (
        f"{file}: line {number} is no JSON object with 'messages', each with 'role' and 'content'; fix it or leave it"
        " out"
    )


def test_a_conversation_that_the_template_refuses(talker: Path, tmp_path: Path):
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must begin with user') }}{% endif %}"
    (talker / "chat_template.jinja").write_text(template + TEMPLATE)
    file = tmp_path / "chat.jsonl"
    talks = [[{"role": role, "content": "?"}] for role in ("user", "system")]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    with pytest.raises(TsconvertError) as caught:
        chat_rows(Checkpoint(talker), config(talker, tmp_path), replace(SHORT, chat=str(file)), 2)
    assert str(caught.value) == (
        f"{file}: the chat template refuses conversation 2 (roles must begin with user); change its roles or leave it"
        " out"
    )


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
    assert not (embedded.folder("tiny-mistral") / "tsconvert.json").exists()


def test_streamed_rows_keep_the_shares_and_go_on_where_they_were(dense: Path, tmp_path: Path):
    for letter in "ab":
        (tmp_path / f"{letter}.txt").write_text(letter * 3_000)
    sources = [Source(path=str(tmp_path / "a.txt"), weight=3), Source(path=str(tmp_path / "b.txt"), weight=1)]
    rows = [row for row, _ in zip(StreamedRows(Letters(), sources, 100, seed=1), range(80), strict=False)]
    assert [chr(row["input_ids"][0]) for row in rows[:8]] == list("aabaaaba")
    later = next(iter(StreamedRows(Letters(), sources, 100, seed=1, skip=41)))
    assert torch.equal(later["input_ids"], rows[41]["input_ids"])
    report = relufy(
        config(
            dense,
            tmp_path / "out",
            data=(Source(path=str(embedded.text("train.txt"))),),
            full=replace(SHORT, stream=True),
        )
    )
    assert report.full.tokens == 2048


@pytest.mark.parametrize("name", ["turbosparse", "offline"])
def test_the_mixture_files_of_the_examples(name: str):
    parts = mixture(Source(path=str(Path(__file__).parents[3] / "examples" / "mixtures" / f"{name}.toml")))
    assert len(parts) >= 4
    assert sum(part.weight for part in parts) == pytest.approx(1.0)
