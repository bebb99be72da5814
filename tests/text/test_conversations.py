"""Conversations as training rows."""

import json
from pathlib import Path

import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.text.conversations import answered, chat_rows, chat_tokenizer
from tsconvert.text.training_rows import IGNORED, as_inputs

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_only_answers_are_learnt(talker: Path):
    tokenizer = chat_tokenizer(talker)
    talk = json.loads((talker / "chat.jsonl").read_text().splitlines()[0])["messages"]
    ids, inside = answered(tokenizer, talk)
    learnt = tokenizer.decode([token for token, flag in zip(ids, inside, strict=True) if flag])
    assert learnt.replace(" ", "") == "TheWhiteWhale.</s>\nTheWhiteWhale.</s>\n"
    train, held = chat_rows(Checkpoint(talker), talker / "chat.jsonl", context=128, seed=0, multiple=2)
    assert len(held.rows_NS) >= 1
    assert len(train.rows_NS) % 2 == 0
    rows = zip(train.rows_NS, train.begins_NS, train.asked_NS, strict=True)
    labels = torch.cat([as_inputs(*row)["labels"] for row in rows])
    share = float((labels != IGNORED).float().mean())
    assert share == pytest.approx(sum(inside) / len(ids), abs=0.02)


@pytest.mark.parametrize(("line", "number"), [('{"messages": [{"role": "user"}]}', 2), ("[]", 2), ("[" * 9999, 2)])
def test_what_is_no_conversation(talker: Path, tmp_path: Path, line: str, number: int):
    file = tmp_path / "chat.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "?"}]}\n' + line + "\n")
    with pytest.raises(TsconvertError) as caught:
        chat_rows(Checkpoint(talker), file, context=128, seed=0, multiple=2)
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
        chat_rows(Checkpoint(talker), file, context=128, seed=0, multiple=2)
    assert str(caught.value) == (
        f"{file}: the chat template refuses conversation 2 (roles must begin with user); change its roles or leave it"
        " out"
    )
