"""Log-likelihoods of continuations: what tasks ask of a model, ours and lm-eval's."""

from collections.abc import Sequence

import numpy as np

from ...common.errors import TsconvertError
from ...common.progress import note, progress
from .divergence import log_softmax, loss_of
from .scorer import Scorer
from .windows import Windows

Pair = tuple[list[int], list[int]]
"""Tokens of a context and of what continues it."""
_SWEEP_TOKENS = 1 << 16  # that a checkpoint takes at once: hidden states in memory, and a few readings of the weights


def log_likelihoods(model: Scorer, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
    """For each pair: ln p of the continuation after the context, and whether it is the likeliest, token by token.

    A context that is too long loses its beginning. Rows that differ in their last token only are computed once.

    Raises:
        TsconvertError: a continuation alone is longer than the model's context.
    """
    rows: dict[tuple[tuple[int, ...], int], list[int]] = {}
    cut = 0
    for number, (context, continuation) in enumerate(pairs):
        row = (context + continuation)[-(model.context + 1) :]  # the last token is not read
        cut += len(context) + len(continuation) > len(row)
        first = len(row) - len(continuation) - 1
        if first < 0:
            raise TsconvertError(
                f"a continuation is longer than the model's context of {model.context}; leave the task out"
            )
        rows.setdefault((tuple(row[:-1]), first), []).append(number)
    if cut:
        note(
            f"{cut} of {len(pairs)} contexts lose their beginning: with what follows they exceed {model.context} tokens"
        )
    found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    with progress("questions", len(pairs)) as step:
        for batch in _batches(list(rows), whole=model.mode == "checkpoint"):
            width = max(len(row) for row, _ in batch) + 1
            windows = Windows(
                rows_NS=np.array([[*row] + [0] * (width - len(row)) for row, _ in batch], np.int64),
                first_N=[first for _, first in batch], corpus_N=[0] * len(batch), corpora=["tasks"], counting=False,
            )  # fmt: skip
            for key, logits_PV in zip(batch, model.logits(windows), strict=True):
                wanted = len(key[0]) - key[1]  # behind it are those that fill the row up
                log_PV = log_softmax(logits_PV[:wanted])
                for number in rows[key]:
                    target_P = np.asarray(pairs[number][1], np.int64)
                    likeliest = bool((log_PV.argmax(-1) == target_P).all())
                    found[number] = -float(loss_of(log_PV, target_P).sum()), likeliest
                    step("")
    return found


def _batches(rows: list[tuple[tuple[int, ...], int]], *, whole: bool) -> list[list[tuple[tuple[int, ...], int]]]:
    """Rows of like length together for a model that is swept as a whole; else one by one, like beginnings in a row."""
    if not whole:
        return [[row] for row in sorted(rows)]
    batches: list[list[tuple[tuple[int, ...], int]]] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if not batches or (len(batches[-1]) + 1) * (len(row[0]) + 1) > _SWEEP_TOKENS:
            batches.append([])
        batches[-1].append(row)
    return batches
