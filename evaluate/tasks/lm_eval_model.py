"""A scorer as lm-eval sees a model: log-likelihoods of continuations, and greedy text."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...common.errors import TsconvertError
from ...common.progress import progress
from ..scoring.divergence import Floats, log_softmax, loss_of
from ..scoring.scorer import Scorer
from ..scoring.windows import Windows

Pair = tuple[list[int], list[int]]
"""Tokens of a context and of what continues it."""


class ScorerLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's view of ``scorer``. Contexts that are too long lose their beginning."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._scorer.start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The model's tokens; BOS in front where its texts have it, unless ``add_special_tokens`` is False."""
        tokens = self._scorer.encode(string)
        bare = add_special_tokens is False and self._scorer.bos is not None and tokens[:1] == [self._scorer.bos]
        return tokens[1:] if bare else tokens

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-likelihood of whole texts, in windows as long as the model's context."""
        sums = []
        for request in requests:
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(tokens, self.eot_token_id, self._scorer.context - 1, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            sums.append(sum(found for found, _ in self._score([(list(a), list(b)) for a, b in pairs])))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The likeliest text after each context, up to the first of the request's stop words."""
        answers = []
        with progress("answers", len(requests)) as step:
            for request in requests:
                context, settings = request.args
                until = settings.get("until") or []
                stops = [until] if isinstance(until, str) else list(until)
                answers.append(self._generate(context, stops, int(settings.get("max_gen_toks", 256))))
                step("")
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return list(self._score([(context, continuation) for _, context, continuation in requests]))

    def _score(self, pairs: list[Pair]) -> Iterator[tuple[float, bool]]:
        """(log-likelihood, whether it is the likeliest) of each continuation."""
        with progress("questions", len(pairs)) as step:
            for (_, continuation), logits_PV in zip(pairs, self._logits(pairs), strict=False):
                target_P = np.asarray(continuation, np.int64)
                log_PV = log_softmax(logits_PV[: len(target_P)])
                yield -float(loss_of(log_PV, target_P).sum()), bool((log_PV.argmax(-1) == target_P).all())
                step("")

    def _logits(self, pairs: list[Pair]) -> Iterator[Floats]:
        """From the last token of each context on. A checkpoint takes all rows at once, filled up to one length."""
        room = self._scorer.context
        rows = [(context + continuation)[-room:] for context, continuation in pairs]
        first = [len(row) - len(continuation) - 1 for row, (_, continuation) in zip(rows, pairs, strict=True)]
        if min(first, default=0) < 0:
            raise TsconvertError(f"a continuation is longer than the model's context of {room}; leave the task out")
        size = len(rows) if self._scorer.mode == "checkpoint" else 1
        for at in range(0, len(rows), max(1, size)):
            batch = range(at, at + size)
            width = max(len(rows[i]) for i in batch)
            rows_NS = np.array([rows[i] + [0] * (width - len(rows[i])) for i in batch], np.int64)
            windows = Windows(
                rows_NS=rows_NS, first_N=[first[i] for i in batch], corpus_N=[0] * len(batch), corpora=["tasks"]
            )
            yield from self._scorer.logits(windows)

    def _generate(self, context: str, stops: list[str], limit: int) -> str:
        generate = getattr(self._scorer, "generate", None)
        if generate is None:
            raise TsconvertError("tasks that generate text need a GGUF file; export the model first")
        return str(generate(self.tok_encode(context), stops, limit))
