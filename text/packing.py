"""Rows of tokens: texts drawn from sources by weight, one after the other, cut to the context."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import embedded
from ..common.errors import TsconvertError
from ..common.progress import note
from ..model.checkpoint import Checkpoint
from .sources import Source, mixture, texts
from .tokenizer import load_tokenizer


def calibration_rows(
    checkpoint: Checkpoint, sources: Sequence[Source], *, tokens: int, context: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """The rows [N, S] that a stage works on: `packed_rows` with the checkpoint's tokenizer.

    Args:
        sources: empty takes the embedded text, and says so.
        context: tokens a row, S; cut to the model's own context.

    Returns:
        N of at least 2, so that one row can be kept back.

    Raises:
        TsconvertError: as `packed_rows`, or fewer than two rows.
    """
    found = documents(checkpoint, sources, tokens=tokens, context=context, seed=seed)[0]
    if not sources:
        note(
            "no --data: the text is the embedded English one (State of the Union addresses, Moby-Dick)"
            + ("; this model holds conversations: give text like them, or it forgets how" if _talks(checkpoint) else "")
        )
    return found


def _talks(checkpoint: Checkpoint) -> bool:
    """Whether the model is for conversations: its tokenizer has a chat template."""
    if (checkpoint.folder / "chat_template.jinja").exists():
        return True
    config = checkpoint.folder / "tokenizer_config.json"
    return config.exists() and "chat_template" in config.read_text(encoding="utf-8", errors="replace")


def documents(
    checkpoint: Checkpoint, sources: Sequence[Source], *, tokens: int, context: int, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The rows of `calibration_rows` [N, S], and whether a text begins at each token [N, S].

    Raises:
        TsconvertError: as there, or the tokenizer has tokens that the model does not know.
    """
    tokenizer, spec = load_tokenizer(checkpoint.folder), checkpoint.spec
    sources = sources or (Source(path=str(embedded.text("train.txt"))),)
    how = {"tokens": tokens, "context": min(context, spec.context), "seed": seed}
    rows_NS, begins_NS = packed_rows(tokenizer, sources, **how, least=2)
    if rows_NS.max() >= spec.vocab:
        raise TsconvertError(
            f"{checkpoint.folder}: the tokenizer gives token {rows_NS.max()} and the model has {spec.vocab} tokens;"
            " copy the model's own tokenizer there"
        )
    return rows_NS, begins_NS


def packed_rows(
    tokenizer: Any, sources: Sequence[Source], *, tokens: int, context: int, seed: int = 0, least: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """``tokens`` tokens drawn from the sources by weight, packed into rows of ``context``, and where texts begin.

    Text files are cut into pieces of about 16 KB at line or word ends; pieces and records are drawn in a seeded random
    order, so that a few tokens of a large corpus are still spread over all of it.

    Args:
        tokenizer: a transformers tokenizer; its own special tokens begin each piece.
        least: rows that there must be.

    Returns:
        Token ids [N, context] and, for each, whether a text begins with it.

    Raises:
        TsconvertError: a source is missing, unreadable, or has too little text.
    """
    rng = random.Random(seed)
    sources = [each for source in sources for each in mixture(source)]
    total_weight = sum(source.weight for source in sources)
    found = []
    for source in sources:
        share = max(context, round(tokens * source.weight / total_weight))
        found.append(_source_rows(tokenizer, source, share, context, rng))
    rows_NS, begins_NS = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if len(rows_NS) < least:
        raise TsconvertError(f"--tokens {tokens}: {len(rows_NS)} sequence of {context} tokens; ask for at least two")
    order = np.random.default_rng(seed).permutation(len(rows_NS))
    return rows_NS[order], begins_NS[order]


def _source_rows(
    tokenizer: Any, source: Source, tokens: int, context: int, rng: random.Random
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    stream: list[int] = []
    begins: list[int] = []
    need = -(-tokens // context) * context
    for text in texts(source, rng):
        begins.append(len(stream))
        stream += tokenizer(text).input_ids
        if len(stream) >= need:
            break
    if len(stream) < context:
        raise TsconvertError(
            f"--data {source.path}: {len(stream)} tokens, which is not one row of {context}; give more text"
        )
    usable = min(len(stream), need) // context * context
    starts = np.zeros(len(stream) + 1, np.bool_)
    starts[begins] = True
    return np.asarray(stream[:usable], np.int64).reshape(-1, context), starts[:usable].reshape(-1, context)
