"""`--data self`: text sampled from the dense teacher, for users without a corpus (LLM-QAT, arXiv 2305.17888).

Half of what a model for conversations writes are conversations in its chat template, its questions its own as well
(Magpie, arXiv 2406.08464).
"""

import json
from collections.abc import Sequence
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
) -> tuple[Source, ...]:
    """``sources`` with each one called `self` replaced by ``file``, which the teacher's text is written to first.

    Args:
        teacher: the dense model that writes.
        file: the .jsonl file to make; one that an earlier run left there is used as it is.
        tokens: wanted from all sources together.

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
        wanted = round(tokens * share * 1.1)
        write_own_text(checkpoint, file, wanted, context=context, seed=seed, device=device, bfloat16=bfloat16)
    processes.barrier()
    return tuple(replace(source, path=str(file)) if source.path == OWN else source for source in sources)


@torch.no_grad()
def write_own_text(
    teacher: Checkpoint, file: Path, tokens: int, *, context: int, seed: int, device: str, bfloat16: bool
) -> None:
    """Sample about ``tokens`` tokens from ``teacher`` into a .jsonl file, a text of ``context`` tokens a line or less.

    A text opens with the beginning-of-text token and one drawn from the vocabulary; the next few are the likeliest, the
    others are drawn from the whole distribution. Where the tokenizer has a chat template every other batch are
    conversations of one question and one answer.
    """
    tokenizer = load_tokenizer(teacher.folder)
    model = dense_model(teacher, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    length = min(context, teacher.spec.context)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    turns = _turns(tokenizer)
    rounds = max(1, -(-tokens // (_BATCH * length)))
    with atomic_file(file) as stream, progress("text of the teacher's own", rounds) as step:
        for number in range(rounds):
            if turns is not None and number % 2 == 0:
                found = [text for _ in range(2) for text in _conversations(model, tokenizer, turns, length)]
            else:
                opening = torch.randint(teacher.spec.vocab, (_BATCH, 1), generator=generator)
                if teacher.spec.bos is not None:
                    opening = torch.cat([torch.full_like(opening, teacher.spec.bos), opening], 1)
                ids = _continued(model, opening.to(device), _LIKELY_TOKENS, sample=False)
                ids = _continued(model, ids, length - ids.shape[1], sample=True)
                found = tokenizer.batch_decode(ids, skip_special_tokens=True)
            for text in found:
                stream.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            step("")


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
    questions = _drawn(model, prompts, max(1, length // _QUESTION_SHARE), ends)
    prompts = [[*before, *ids, *between] for ids in questions]
    answers = _drawn(model, prompts, max(1, length - max(map(len, prompts))), ends)
    said = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (questions, answers))
    texts = [tokenizer.apply_chat_template(_talk(*each), tokenize=False) for each in zip(*said, strict=True)]
    # the tokenizer begins each text with its own special tokens
    return [text.removeprefix(tokenizer.decode(tokenizer("").input_ids)) for text in texts]


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer.strip()}]


def _drawn(model: Any, prompts: list[list[int]], count: int, ends: set[int]) -> list[list[int]]:
    """What the model goes on with after each prompt, up to the first of ``ends``."""
    longest = max(map(len, prompts))
    ids_NS, known_NS = (
        torch.tensor([[0] * (longest - len(ids)) + part for ids, part in zip(prompts, parts, strict=True)])
        for parts in (prompts, [[1] * len(ids) for ids in prompts])
    )
    found = model.generate(
        ids_NS.to(model.device), attention_mask=known_NS.to(model.device), do_sample=True, top_k=0,
        max_new_tokens=count, eos_token_id=sorted(ends), pad_token_id=0,
    )[:, longest:].tolist()  # fmt: skip
    return [ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))] for ids in found]


def _continued(model: Any, ids_NS: torch.Tensor, count: int, *, sample: bool) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        ids_NS, attention_mask=torch.ones_like(ids_NS), do_sample=sample, top_k=0, max_new_tokens=count,
        min_new_tokens=count, pad_token_id=0,
    )  # fmt: skip
    return found
