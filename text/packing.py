"""Rows of tokens: texts drawn from sources by weight, one after the other, cut to the context."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import embedded
from ..common.errors import TsconvertError
from ..common.progress import note
from ..model.checkpoint import Checkpoint
from .sources import Source, mixture, texts
from .tokenizer import load_tokenizer

Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]
"""Tokens [S], whether a text begins at each, and whether it is to be foreseen."""


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
        tokenizer: a transformers tokenizer; its own special tokens begin each piece, and each row.
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
    count = 0

    def encoded() -> Iterator[list[int]]:
        nonlocal count
        for text in texts(source, rng):
            ids = tokenizer(text).input_ids
            count += len(ids)
            yield ids

    rows = list(islice(pack(all_asked(encoded()), context, tokenizer.bos_token_id), -(-tokens // context)))
    if not rows:
        raise TsconvertError(f"--data {source.path}: {count} tokens, which is not one row of {context}; give more text")
    rows_NS, begins_NS, _ = (np.stack(parts) for parts in zip(*rows, strict=True))
    return rows_NS, begins_NS


def all_asked(encoded: Iterable[list[int]]) -> Iterator[tuple[list[int], list[bool]]]:
    """Tokenized texts as `pack` takes them, all of whose tokens are to be foreseen."""
    return ((ids, [True] * len(ids)) for ids in encoded)


def pack(encoded: Iterable[tuple[list[int], list[bool]]], context: int, bos: int | None) -> Iterator[Row]:
    """Concatenate tokenized texts and cut them into rows; an incomplete last row is dropped.

    Args:
        encoded: each text's tokens, and whether each is to be foreseen.
        bos: begins a row that goes on with a text, too, if it began the text: what Gemma 3's first layers do without it
            is another thing (10 to 44 times as steep in their weights), and llama.cpp and `eval` put it there.
    """
    row: tuple[list[int], list[bool], list[bool]] = [], [], []
    for ids, asked in encoded:
        done = 0
        while done < len(ids):
            if done and ids[0] == bos and not row[0] and context > 1:
                row = ids[:1], [True], [False]
            part = slice(done, done + context - len(row[0]))
            new = ids[part]
            row[0].extend(new)
            row[1].extend(done == 0 and place == 0 for place in range(len(new)))
            row[2].extend(asked[part])
            done = part.stop
            if len(row[0]) == context:
                yield np.asarray(row[0], np.int64), np.asarray(row[1], np.bool_), np.asarray(row[2], np.bool_)
                row = [], [], []
