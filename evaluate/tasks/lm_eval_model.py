"""A scorer as lm-eval sees a model: log-likelihoods of continuations, and greedy text."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...common.errors import TsconvertError
from ...common.progress import progress
from ..scoring.continuations import log_likelihoods
from ..scoring.scorer import Scorer


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
            sums.append(
                sum(found for found, _ in log_likelihoods(self._scorer, [(list(a), list(b)) for a, b in pairs]))
            )
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
        return log_likelihoods(self._scorer, [(context, continuation) for _, context, continuation in requests])

    def _generate(self, context: str, stops: list[str], limit: int) -> str:
        generate = getattr(self._scorer, "generate", None)
        if generate is None:
            raise TsconvertError("tasks that generate text need a GGUF file; export the model first")
        return str(generate(self.tok_encode(context), stops, limit))
