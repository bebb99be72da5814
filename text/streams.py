"""Rows that are made while training, for corpora larger than memory: a seeded order, resumable by counting rows."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..common.errors import TsconvertError
from ..model.checkpoint import Checkpoint
from .packing import Row, all_asked, pack
from .sources import Source, mixture, texts
from .tokenizer import load_tokenizer
from .training_rows import Packed, as_inputs

# Shape suffixes: N sequences, S tokens a sequence.
_HELD_ROWS = 64


class StreamedRows(IterableDataset[dict[str, torch.Tensor]]):
    """Endless rows of a mixture: each source's texts packed one after the other, the sources in turn by weight.

    When a source ends it starts again in another order. To resume, the trainer skips the rows that were trained on.

    Args:
        tokenizer: a transformers tokenizer.
        sources: mixture files are expanded.
        context: tokens a row.
        skip: the number of rows to leave out at the start.
    """

    def __init__(self, tokenizer: Any, sources: Sequence[Source], context: int, seed: int, skip: int = 0) -> None:
        self.tokenizer, self.context, self.seed, self.skip = tokenizer, context, seed, skip
        self.sources = [each for source in sources for each in mixture(source)]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for number, (row_S, begins_S, _) in enumerate(self.rows()):
            if number >= self.skip:
                yield as_inputs(row_S, begins_S)

    def rows(self) -> Iterator[Row]:
        """Endless rows, as of `pack`."""
        bos = self.tokenizer.bos_token_id
        streams = [pack(all_asked(self._encoded(each, n)), self.context, bos) for n, each in enumerate(self.sources)]
        total = sum(source.weight for source in self.sources)
        credit = [0.0] * len(streams)
        while True:  # the one that is furthest behind its share
            credit = [has + source.weight / total for has, source in zip(credit, self.sources, strict=True)]
            turn = max(range(len(credit)), key=credit.__getitem__)
            credit[turn] -= 1
            yield next(streams[turn])

    def _encoded(self, source: Source, number: int) -> Iterator[list[int]]:
        """The tokens of the source's texts, again and again."""
        rng = random.Random(self.seed * 1_000_003 + number)
        while True:
            empty = True
            for text in texts(source, rng):
                ids: list[int] = self.tokenizer(text).input_ids
                empty = empty and not ids
                yield ids
            if empty:
                raise TsconvertError(f"--data {source.path}: it has no text; leave it out")


def streamed_rows(
    checkpoint: Checkpoint, sources: Sequence[Source], *, context: int, seed: int
) -> tuple[StreamedRows, Packed]:
    """The rows to train on and, the first of the stream, those to judge by."""
    tokenizer, context = load_tokenizer(checkpoint.folder), min(context, checkpoint.spec.context)
    stream = StreamedRows(tokenizer, sources, context, seed, skip=_HELD_ROWS)
    held = [row for row, _ in zip(stream.rows(), range(_HELD_ROWS), strict=False)]
    rows_NS, begins_NS, _ = (np.stack(parts) for parts in zip(*held, strict=True))
    return stream, Packed(rows_NS, begins_NS)
