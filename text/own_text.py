"""`--data self`: text sampled from the dense teacher, for users without a corpus (LLM-QAT, arXiv 2305.17888)."""

import json
from collections.abc import Sequence
from dataclasses import replace
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
    """Sample about ``tokens`` tokens from ``teacher`` into a .jsonl file, a text of ``context`` tokens a line.

    Each text opens with the beginning-of-text token and one drawn from the vocabulary; the next few are the likeliest,
    the others are drawn from the whole distribution.
    """
    tokenizer = load_tokenizer(teacher.folder)
    model = dense_model(teacher, torch.bfloat16 if bfloat16 else torch.float32).to(device)
    length = min(context, teacher.spec.context)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    rounds = max(1, -(-tokens // (_BATCH * length)))
    with atomic_file(file) as stream, progress("text of the teacher's own", rounds) as step:
        for _ in range(rounds):
            opening = torch.randint(teacher.spec.vocab, (_BATCH, 1), generator=generator)
            if teacher.spec.bos is not None:
                opening = torch.cat([torch.full_like(opening, teacher.spec.bos), opening], 1)
            ids = _continued(model, opening.to(device), _LIKELY_TOKENS, sample=False)
            ids = _continued(model, ids, length - ids.shape[1], sample=True)
            for text in tokenizer.batch_decode(ids, skip_special_tokens=True):
                stream.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            step("")


def _continued(model: Any, ids_NS: torch.Tensor, count: int, *, sample: bool) -> torch.Tensor:
    found: torch.Tensor = model.generate(
        ids_NS, attention_mask=torch.ones_like(ids_NS), do_sample=sample, top_k=0, max_new_tokens=count,
        min_new_tokens=count, pad_token_id=0,
    )  # fmt: skip
    return found
