"""`--data self`: text sampled from the dense teacher, for who has no corpus (LLM-QAT, arXiv 2305.17888)."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..common import processes
from ..common.errors import TsconvertError
from ..common.files import atomic_file
from ..common.progress import progress
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.whole_model import dense_model
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ..convert.relufy import RelufyConfig

OWN = "self"
_BATCH = 16
_LIKELY_TOKENS = 5  # of a text, the first ones after the opening that are taken greedily: LLM-QAT's mixed way


def with_own_text(config: "RelufyConfig") -> "RelufyConfig":
    """``config`` with each source called `self` replaced by a file of the teacher's text; made once, beside OUT.

    Raises:
        TsconvertError: the teacher is sparse, or ends every text at once.
    """
    if all(source.path != OWN for source in config.data):
        return config
    file = config.out.with_name(config.out.name + ".self.jsonl")
    teacher = open_checkpoint(config.teacher or config.model)
    if teacher.spec.sparse:
        raise TsconvertError(
            f"--data self: {teacher.folder} is {teacher.spec.activation}; --teacher DENSE is to write it"
        )
    if not processes.rank() and not file.exists():
        total = sum(source.weight for source in config.data)
        share = sum(source.weight for source in config.data if source.path == OWN) / total
        wanted = max(config.tokens, config.full.tokens if config.recover == "full" else 0)
        write_own_text(teacher, file, round(wanted * share * 1.1), config)
    processes.barrier()
    return replace(
        config, data=tuple(replace(source, path=str(file)) if source.path == OWN else source for source in config.data)
    )


@torch.no_grad()
def write_own_text(teacher: Checkpoint, file: Path, tokens: int, config: "RelufyConfig") -> None:
    """Sample about ``tokens`` tokens from ``teacher`` into a .jsonl file, a text a line.

    Each text opens with the beginning-of-text token and one drawn from the vocabulary; the next few are the likeliest,
    the others are drawn from the whole distribution.
    """
    device, tokenizer = config.device, load_tokenizer(teacher.folder)
    model = dense_model(teacher, torch.bfloat16 if config.training.autocast else torch.float32).to(device)
    length = min(config.context, teacher.spec.context)
    generator = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(config.seed)
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
