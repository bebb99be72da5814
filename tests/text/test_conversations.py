"""Conversations as training rows."""

import json
from pathlib import Path

import pytest
import torch

from tsconvert.common.errors import TsconvertError
from tsconvert.model.checkpoint import Checkpoint
from tsconvert.text.conversations import answered, chat_rows, chat_tokenizer
from tsconvert.text.training_rows import IGNORED, as_inputs

# each with the answers marked, as transformers marks them; {% generation %} is taken out where it is not to be there
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# the system text goes into the last user turn, as Mistral v0.3 has it
MISTRAL = (
    "{{ bos_token }}{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if m == users[-1] and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
# what was thought before the last answer is not shown again, as Qwen3 and DeepSeek have it
THINKING = CHATML.replace(
    "{{ m.content }}<|im_end|>\n{% endgen",
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endgen",
)
SYSTEM, USER, ANSWER = ({"role": role, "content": f"The {role}."} for role in ("system", "user", "assistant"))
AGAIN = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "<think>Hm.</think>A whale."}]
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


def unmarked(template: str) -> str:
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (CHATML, [SYSTEM, USER, ANSWER, *AGAIN]),
        (CHATML, [USER, ANSWER, ANSWER, USER]),
        (MISTRAL, [SYSTEM, USER, ANSWER]),
        (MISTRAL, [USER, ANSWER, *AGAIN]),
        (THINKING, [USER, ANSWER, *AGAIN]),
    ],
)
def test_the_answers_are_those_that_transformers_marks(talker: Path, template: str, messages: list, marked: bool):
    tokenizer = chat_tokenizer(talker)
    right = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    tokenizer.chat_template = template if marked else unmarked(template)
    ids, inside = answered(tokenizer, messages)
    assert ids == right["input_ids"]
    assert list(map(int, inside)) == right["assistant_masks"]
    assert any(inside)


@pytest.mark.parametrize(
    ("template", "messages"),
    [(MISTRAL, [SYSTEM, USER, ANSWER, *AGAIN]), (THINKING, [USER, AGAIN[1], *AGAIN])],
)
def test_a_template_that_rewrites_what_was_said_is_refused(talker: Path, template: str, messages: list):
    (talker / "chat_template.jinja").write_text(unmarked(template))
    file = talker / "chat.jsonl"
    file.write_text("\n" + json.dumps({"messages": messages}) + "\n")
    with pytest.raises(TsconvertError) as caught:
        chat_rows(Checkpoint(talker), file, context=16, seed=0, multiple=1)
    assert str(caught.value) == (
        f"{file}: line 2: the chat template writes the messages up to answer 1 differently once more follow, so that"
        " the answer's tokens cannot be told; mark them in the template with {% generation %}, or end the conversation"
        " there"
    )
    tokenizer = chat_tokenizer(talker)
    tokenizer.chat_template = template
    right = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert list(map(int, answered(tokenizer, messages)[1])) == right["assistant_masks"]


def test_conversations_without_answers_are_refused(talker: Path):
    file = talker / "chat.jsonl"
    file.write_text((json.dumps({"messages": [USER]}) + "\n") * 64)
    with pytest.raises(TsconvertError) as caught:
        chat_rows(Checkpoint(talker), file, context=16, seed=0, multiple=1)
    assert str(caught.value) == (
        f"{file}: the conversations trained on have no answer to learn; give more that have messages with the role"
        " 'assistant'"
    )


def test_other_forms_of_the_same_conversation(talker: Path, capsys: pytest.CaptureFixture):
    """ShareGPT's keys, OpenAI's text parts, a BOM, and a line separator within a text."""
    plain = [USER, {"role": "assistant", "content": "One.\u2028Two.\ufffd"}]
    parts = [{"type": "text", "text": text} for text in ("One.\u2028", "Two.\ud800")]
    lines = [
        {"messages": [USER, {"role": "assistant", "content": parts}]},
        {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": plain[1]["content"]}]},
        {"messages": [USER | {"name": None, "tool_calls": None}, plain[1]], "tools": []},
        {"messages": [USER, {"role": "assistant", "content": None}]},
    ]
    file = talker / "chat.jsonl"
    texts = [json.dumps(line, ensure_ascii="\ud800" in str(line) or number == 0) for number, line in enumerate(lines)]
    file.write_text("\ufeff" + "\n".join(texts * 16), encoding="utf-8")
    train, held = chat_rows(Checkpoint(talker), file, context=8, seed=0, multiple=1)
    tokenizer = chat_tokenizer(talker)
    # the template with its parts, as transformers would render it: one part after the other
    right = tokenizer.apply_chat_template(plain, return_dict=True)["input_ids"]
    assert train.rows_NS.size > 40 * len(right)
    for rows_NS in (held.rows_NS, train.rows_NS):
        assert rows_NS.reshape(-1).tolist() == (right * 48)[: rows_NS.size]
    assert f"{file}: 16 conversations have a message without content (null) and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}], "the conversation calls tools"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "the content [{'type': 'image_url'}] is no text"),
        ([{"role": "user", "content": {"a": 1}}], "the content {'a': 1} is no text"),
        ([{"role": "user", "content": 5}], "the content 5 is no text"),
        ([{"role": 5, "content": "a"}], "is no JSON object with 'messages'"),
        ([ANSWER, USER], "the conversation begins with an answer"),
        ([{"from": "observation", "value": "a"}], "role 'observation' is none of human, gpt, user, assistant, system"),
    ],
)
def test_what_is_no_text_is_refused_by_its_line(talker: Path, messages: list, why: str):
    file = talker / "chat.jsonl"
    key = "conversations" if "from" in messages[0] else "messages"
    file.write_text(json.dumps({"messages": [USER]}) + "\n" + json.dumps({key: messages}))
    with pytest.raises(TsconvertError) as caught:
        chat_rows(Checkpoint(talker), file, context=16, seed=0, multiple=1)
    assert str(caught.value).startswith(f"{file}: line 2")
    assert why in str(caught.value)


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
        f"{file}: line 2: the chat template refuses the conversation (roles must begin with user); change its roles or"
        " leave it out"
    )
