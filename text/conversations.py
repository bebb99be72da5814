"""Conversations as training rows: chat-formatted .jsonl through the chat template, with a loss on answers only."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import TsconvertError, reason, shown
from ..common.progress import note
from ..model.checkpoint import Checkpoint
from .packing import pack
from .records import readable
from .tokenizer import load_tokenizer
from .training_rows import Packed

# Shape suffixes: N sequences, S tokens a sequence.
_HELD_SHARE = 16
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"} | {role: role for role in ("user", "assistant", "system")}
Message = dict[str, Any]


def chat_rows(
    checkpoint: Checkpoint, file: str | Path, *, context: int, seed: int, multiple: int
) -> tuple[Packed, Packed]:
    """Conversations packed into rows, in a seeded order: those to train on, and one in sixteen to judge by.

    Args:
        checkpoint: the model, for its tokenizer and its chat template.
        file: a .jsonl file, a conversation a line: `{"messages": [{"role": ..., "content": ...}]}`, or ShareGPT's
            `{"conversations": [{"from": ..., "value": ...}]}`.
        context: tokens a row; cut to the model's own context.
        multiple: the number of training rows is cut to a multiple of this.

    Raises:
        TsconvertError: the tokenizer has no chat template, the template does not show which tokens are answers, or the
            file is no list of conversations or has no answers.
    """
    tokenizer = chat_tokenizer(checkpoint.folder)
    talks = _conversations(Path(file))
    order = np.random.default_rng(seed).permutation(len(talks))
    encoded = [_encoded(tokenizer, talks[i][1], f"{file}: line {talks[i][0]}") for i in order]
    context = min(context, checkpoint.spec.context)
    held = max(1, len(encoded) // _HELD_SHARE)
    parts = encoded[:held], encoded[held:]
    packed = [list(pack(part, context, tokenizer.bos_token_id)) for part in parts]
    if not all(packed):
        raise TsconvertError(
            f"{file}: {len(talks)} conversations, which do not make two rows of {context} tokens; give more or a"
            " shorter --context"
        )
    judge, train = (Packed(*(np.stack(each) for each in zip(*rows, strict=True))) for rows in packed)
    train = train[: max(1, len(train.rows_NS) // multiple) * multiple]
    for rows, use in ((train, "trained on"), (judge, "kept back to judge by")):
        if not (rows.asked_NS & ~rows.begins_NS).any():  # type: ignore[operator]
            raise TsconvertError(
                f"{file}: the conversations {use} have no answer to learn; give more that have messages with the role"
                " 'assistant'"
            )
    return train, judge


def chat_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with a chat template.

    Raises:
        TsconvertError: it has none.
    """
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        raise TsconvertError(f"{folder}: the tokenizer has no chat template; put a chat_template.jinja there")
    return tokenizer


def _encoded(tokenizer: Any, messages: list[Message], where: str) -> tuple[list[int], list[bool]]:
    try:
        return answered(tokenizer, messages)
    except TsconvertError as error:
        raise TsconvertError(f"{where}: {error}") from None
    except Exception as error:  # a template may raise anything
        raise TsconvertError(
            f"{where}: the chat template refuses the conversation ({reason(error)}); change its roles or leave it out"
        ) from error


def answered(tokenizer: Any, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and whether each belongs to an answer of the assistant (end mark included).

    Answers are what the template marks with `{% generation %}`. In a template without that tag they are what each
    assistant message adds to the messages before it.

    Raises:
        TsconvertError: the template has no such tag, and writes messages in another way once more follow.
    """
    template = tokenizer.get_chat_template()
    if _GENERATION.search(template):
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, marked = render_jinja_template(
            [messages], chat_template=template, return_assistant_tokens_mask=True, **tokenizer.special_tokens_map
        )
        text, spans = rendered[0], marked[0]
    else:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spans = _answer_spans(tokenizer, messages, text)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [any(start < end and low <= start < high for low, high in spans) for start, end in found["offset_mapping"]]
    return found["input_ids"], inside


def _answer_spans(tokenizer: Any, messages: list[Message], text: str) -> list[tuple[int, int]]:
    """Where the answers stand in ``text``, which the template makes of ``messages``."""
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            if not i:
                raise TsconvertError("the conversation begins with an answer; put the user's message before it")
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            if not (text.startswith(after) and after.startswith(before)):
                raise TsconvertError(
                    f"the chat template writes the messages up to answer {len(spans) + 1} differently once more follow,"
                    " so that the answer's tokens cannot be told; mark them in the template with {% generation %}, or"
                    " end the conversation there"
                )
            spans.append((len(before), len(after)))
    return spans


def _conversations(file: Path) -> list[tuple[int, list[Message]]]:
    """The file's conversations, each with its line; those with a message that is null are left out, and counted."""
    try:
        lines = file.read_bytes().decode("utf-8-sig", "replace").split("\n")
    except OSError as error:
        raise TsconvertError(f"{file}: cannot be read ({error}); give a .jsonl file of conversations") from None
    found = []
    empty = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            messages = _messages(line, f"{file}: line {number}")
            if any(message["content"] is None for message in messages):
                empty += 1
            else:
                found.append((number, messages))
    if empty:
        note(f"{file}: {empty} conversations have a message without content (null) and are left out")
    return found


def _messages(line: str, where: str) -> list[Message]:
    """The messages of one line, in transformers' form, contents as text or None."""
    try:
        record = json.loads(line)
        if "messages" in record:
            messages = [dict(each) for each in record["messages"]]
        else:
            messages = [
                {"role": _sharegpt_role(each["from"], where), "content": each["value"]}
                for each in record["conversations"]
            ]
        if not messages or not all(isinstance(each["role"], str) and "content" in each for each in messages):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TsconvertError(
            f"{where} is no JSON object with 'messages', each with 'role' and 'content'; fix it or leave it out"
        ) from None
    if record.get("tools") or any(each.get("tool_calls") or each.get("function_call") for each in messages):
        raise TsconvertError(f"{where}: the conversation calls tools, which cannot be learnt; leave it out")
    return [each | {"content": _content(each["content"], where)} for each in messages]


def _sharegpt_role(name: Any, where: str) -> str:
    if name not in _SHAREGPT_ROLES:
        raise TsconvertError(
            f"{where}: role {shown(name)} is none of {', '.join(_SHAREGPT_ROLES)}; leave the conversation out"
        )
    return _SHAREGPT_ROLES[name]


def _content(content: Any, where: str) -> str | None:
    """The text of a message, OpenAI's text parts joined."""
    if content is None:
        return None
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        parts = [part.get("text") for part in content]
        if all(isinstance(part, str) for part in parts):
            return readable("".join(parts))
    if not isinstance(content, str):
        raise TsconvertError(
            f"{where}: the content {shown(content)} is no text; write it as text or leave the line out"
        )
    return readable(content)
