"""`--data self`: text sampled from the dense teacher, for users without a corpus (LLM-QAT, arXiv 2305.17888).

Half of what a model for conversations writes are conversations in its chat template, its questions its own as well
(Magpie, arXiv 2406.08464).
"""

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common import processes
from ..common.errors import TsconvertError
from ..common.files import atomic_file
from ..common.progress import progress
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.whole_model import dense_model
from .sources import Source
from .tokenizer import load_tokenizer

OWN = "self"
_BATCH = 16
_QUESTION_SHARE = 4  # of a conversation's tokens one in so many is the question's at most
_QUESTION, _ANSWER = "(the question)", "(the answer)"
_LIKELY_TOKENS = 5  # of a text, the first ones after the opening that are taken greedily: LLM-QAT's mixed way


def with_own_text(
    sources: Sequence[Source],
    teacher: str | Path,
    file: Path,
    *,
    tokens: int,
    context: int,
    seed: int,
    device: str,
    bfloat16: bool,
    limit_s: float | None = None,
) -> tuple[Source, ...]:
    """``sources`` with each one called `self` replaced by ``file``, which the teacher's text is written to first.

    Args:
        teacher: the dense model that writes.
        file: the .jsonl file to make; one that an earlier run left there is used as it is.
        tokens: wanted from all sources together.
        limit_s: end writing after so long, with fewer tokens.

    Raises:
        TsconvertError: the teacher is sparse.
    """
    weights = [source.weight for source in sources if source.path == OWN]
    if not weights:
        return tuple(sources)
    checkpoint = open_checkpoint(teacher)
    if checkpoint.spec.sparse:
        raise TsconvertError(
            f"--data self: {checkpoint.folder} is {checkpoint.spec.activation}; --teacher DENSE is to write it"
        )
    if not processes.rank() and not file.exists():
        share = sum(weights) / sum(source.weight for source in sources)
        model = dense_model(checkpoint, torch.bfloat16 if bfloat16 else torch.float32).to(device)
        length = min(context, checkpoint.spec.context)
        rounds = max(1, -(-round(tokens * share * 1.1) // (_BATCH * length)))
        ends_s = math.inf if limit_s is None else time.monotonic() + limit_s
        _write(_texts(model, checkpoint, length, seed), file, rounds, ends_s)
    processes.barrier()
    return tuple(replace(source, path=str(file)) if source.path == OWN else source for source in sources)


def _write(texts: Iterator[list[str]], file: Path, rounds: int, ends_s: float) -> None:
    """A text a line, of so many rounds, or of those that began before ``ends_s`` on the monotonic clock."""
    with atomic_file(file) as stream, progress("text of the teacher's own", rounds) as step:
        for number in range(rounds):
            if number and time.monotonic() > ends_s:
                break
            for text in next(texts):
                stream.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            step("")


def _texts(model: Any, teacher: Checkpoint, length: int, seed: int) -> Iterator[list[str]]:
    """Rounds of texts of ``length`` tokens or less, about as many tokens in each.

    A text opens with the beginning-of-text token and one drawn from the vocabulary; the next few are the likeliest, the
    others are drawn from the whole distribution. Where the tokenizer has a chat template every other round is
    conversations of one question and one answer.
    """
    tokenizer = load_tokenizer(teacher.folder)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    turns = _turns(tokenizer)
    while True:
        if turns is not None:
            yield [text for _ in range(2) for text in _conversations(model, tokenizer, turns, length)]
        first = torch.randint(teacher.spec.vocab, (_BATCH,), generator=generator).tolist()
        ids = [[token] if teacher.spec.bos is None else [teacher.spec.bos, token] for token in first]
        for count, greedy in ((_LIKELY_TOKENS, True), (length - len(ids[0]) - _LIKELY_TOKENS, False)):
            ids = [a + b for a, b in zip(ids, _continued(model, ids, count, greedy=greedy), strict=True)]
        yield tokenizer.batch_decode(ids, skip_special_tokens=True)


@dataclass(frozen=True)
class _Turns:
    """What a chat template writes around a question and its answer."""

    before: str
    between: str
    behind: str


def _turns(tokenizer: Any) -> _Turns | None:
    """Those of the tokenizer's chat template; None without one that takes a question and an answer."""
    if tokenizer.chat_template is None:
        return None
    talk = _talk(_QUESTION, _ANSWER)
    try:
        asked = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template(talk, tokenize=False)
    except Exception:  # a template may raise anything
        return None
    before, _, between = asked.partition(_QUESTION)
    behind = answered.partition(_ANSWER)[2]
    return _Turns(before, between, behind) if between.strip() and _QUESTION not in between else None


def _conversations(model: Any, tokenizer: Any, turns: _Turns, length: int) -> list[str]:
    """Conversations as the template writes them, of about ``length`` tokens at most: a question, then its answer."""
    before, between, behind = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (turns.before, turns.between, turns.behind)
    )
    ends = {*between[:1], *behind[:1], *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
    prompts = [before] * _BATCH
    questions = _continued(model, prompts, max(1, length // _QUESTION_SHARE), ends)
    prompts = [[*before, *ids, *between] for ids in questions]
    answers = _continued(model, prompts, max(1, length - max(map(len, prompts))), ends)
    said = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (questions, answers))
    texts = [tokenizer.apply_chat_template(_talk(*each), tokenize=False) for each in zip(*said, strict=True)]
    # the tokenizer begins each text with its own special tokens
    return [text.removeprefix(tokenizer.decode(tokenizer("").input_ids)) for text in texts]


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]


def _continued(
    model: Any, prompts: list[list[int]], count: int, ends: Collection[int] = (), *, greedy: bool = False
) -> list[list[int]]:
    """What follows each prompt: ``count`` tokens, or those before the first of ``ends``, drawn where not ``greedy``."""
    longest = max(map(len, prompts))
    ids_NS, known_NS = (
        torch.tensor([[0] * (longest - len(ids)) + part for ids, part in zip(prompts, parts, strict=True)])
        for parts in (prompts, [[1] * len(ids) for ids in prompts])
    )
    until = {"eos_token_id": sorted(ends)} if ends else {"min_new_tokens": count}
    found = model.generate(
        ids_NS.to(model.device), attention_mask=known_NS.to(model.device), do_sample=not greedy, top_k=0,
        max_new_tokens=count, pad_token_id=0, **until,
    )[:, longest:].tolist()  # fmt: skip
    return [ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))] for ids in found]
