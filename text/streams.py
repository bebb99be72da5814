"""Rows that are made while training, for corpora larger than memory: a seeded order, resumable by counting rows."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from ..common.errors import TsconvertError
from ..model.checkpoint import Checkpoint
from .sources import Source, mixture, texts
from .tokenizer import load_tokenizer
from .training_rows import Packed, as_inputs

# Shape suffixes: N sequences, S tokens a sequence.
_HELD_ROWS = 64
Row = tuple[np.ndarray, np.ndarray]


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
        for number, (row_S, begins_S) in enumerate(self.rows()):
            if number >= self.skip:
                yield as_inputs(row_S, begins_S)

    def rows(self) -> Iterator[Row]:
        """Endless rows: tokens [S], and whether a text begins at each."""
        streams = [self._packed(source, number) for number, source in enumerate(self.sources)]
        total = sum(source.weight for source in self.sources)
        credit = [0.0] * len(streams)
        while True:  # the one that is furthest behind its share
            credit = [has + source.weight / total for has, source in zip(credit, self.sources, strict=True)]
            turn = max(range(len(credit)), key=credit.__getitem__)
            credit[turn] -= 1
            yield next(streams[turn])

    def _packed(self, source: Source, number: int) -> Iterator[Row]:
        ids: list[int] = []
        begins: list[bool] = []
        rng = random.Random(self.seed * 1_000_003 + number)
        while True:
            before = len(ids)
            made = 0
            for text in texts(source, rng):
                own = self.tokenizer(text).input_ids
                ids += own
                begins += [place == 0 for place in range(len(own))]
                while len(ids) >= self.context:
                    yield np.asarray(ids[: self.context], np.int64), np.asarray(begins[: self.context], np.bool_)
                    made += 1
                    del ids[: self.context], begins[: self.context]
            if not made and len(ids) == before:
                raise TsconvertError(f"--data {source.path}: it has no text; leave it out")


def streamed_rows(
    checkpoint: Checkpoint, sources: Sequence[Source], *, context: int, seed: int
) -> tuple[StreamedRows, Packed]:
    """The rows to train on and, the first of the stream, those to judge by."""
    tokenizer, context = load_tokenizer(checkpoint.folder), min(context, checkpoint.spec.context)
    stream = StreamedRows(tokenizer, sources, context, seed, skip=_HELD_ROWS)
    held = [row for row, _ in zip(stream.rows(), range(_HELD_ROWS), strict=False)]
    rows_NS, begins_NS = (np.stack(parts) for parts in zip(*held, strict=True))
    return stream, Packed(rows_NS, begins_NS)
