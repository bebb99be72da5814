"""Conversations as training rows: chat-formatted .jsonl through the chat template, with a loss on answers only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import TsconvertError, reason
from ..model.checkpoint import Checkpoint
from .tokenizer import load_tokenizer
from .training_rows import Packed

# Shape suffixes: N sequences, S tokens a sequence.
_HELD_SHARE = 16
Message = dict[str, str]


def chat_rows(
    checkpoint: Checkpoint, file: str | Path, *, context: int, seed: int, multiple: int
) -> tuple[Packed, Packed]:
    """Conversations packed into rows, in a seeded order: those to train on, and one in sixteen to judge by.

    Args:
        checkpoint: the model, for its tokenizer and its chat template.
        file: a .jsonl file, a conversation a line.
        context: tokens a row; cut to the model's own context.
        multiple: the number of training rows is cut to a multiple of this.

    Raises:
        TsconvertError: the tokenizer has no chat template, or the file is no list of conversations.
    """
    tokenizer = chat_tokenizer(checkpoint.folder)
    talks = list(_conversations(Path(file)))
    order = np.random.default_rng(seed).permutation(len(talks))
    encoded = [_encoded(tokenizer, talks[i], file, int(i) + 1) for i in order]
    context = min(context, checkpoint.spec.context)
    held = max(1, len(encoded) // _HELD_SHARE)
    judge, train = _pack(encoded[:held], context), _pack(encoded[held:], context)
    if not len(train.rows_NS) or not len(judge.rows_NS):
        raise TsconvertError(
            f"{file}: {len(talks)} conversations, which do not make two rows of {context} tokens; give more or a"
            " shorter --context"
        )
    return train[: max(1, len(train.rows_NS) // multiple) * multiple], judge


def chat_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with a chat template.

    Raises:
        TsconvertError: it has none.
    """
    tokenizer = load_tokenizer(folder)
    template = folder / "chat_template.jinja"
    if tokenizer.chat_template is None and template.is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise TsconvertError(f"{folder}: the tokenizer has no chat template; put a chat_template.jinja there")
    return tokenizer


def _encoded(tokenizer: Any, messages: list[Message], file: str | Path, number: int) -> tuple[list[int], list[bool]]:
    try:
        return answered(tokenizer, messages)
    except Exception as error:  # a template may raise anything
        raise TsconvertError(
            f"{file}: the chat template refuses conversation {number} ({reason(error)}); change its roles or leave it"
            " out"
        ) from error


def answered(tokenizer: Any, messages: list[Message]) -> tuple[list[int], list[bool]]:
    """A conversation's tokens, and whether each belongs to an answer of the assistant (end mark included)."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
            spans.append((len(before), len(after)))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [any(start < end and low <= start < high for low, high in spans) for start, end in found["offset_mapping"]]
    return found["input_ids"], inside


def _conversations(file: Path) -> Iterator[list[Message]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TsconvertError(f"{file}: cannot be read ({error}); give a .jsonl file of conversations") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            messages = json.loads(line)["messages"]
            yield [{"role": str(each["role"]), "content": str(each["content"])} for each in messages]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise TsconvertError(
                f"{file}: line {number} is no JSON object with 'messages', each with 'role' and 'content'; fix it or"
                " leave it out"
            ) from None


def _pack(talks: list[tuple[list[int], list[bool]]], context: int) -> Packed:
    """Concatenate the conversations and cut them into rows; an incomplete last row is dropped."""
    ids = [token for talk, _ in talks for token in talk]
    answers = [flag for _, flags in talks for flag in flags]
    begins = [place == 0 for talk, _ in talks for place in range(len(talk))]
    rows = len(ids) // context
    shaped = [np.asarray(part[: rows * context]).reshape(rows, context) for part in (ids, begins, answers)]
    return Packed(shaped[0].astype(np.int64), shaped[1].astype(np.bool_), shaped[2].astype(np.bool_))
