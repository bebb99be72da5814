"""A scorer as lm-eval sees a model: log-likelihoods of continuations, and greedy text."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from ...common.errors import TsconvertError
from ...common.progress import note, progress
from ...runner.sampling import Sampling
from ..scoring.continuations import log_likelihoods
from ..scoring.scorer import Scorer

_ANSWER_TOKENS = 256  # where a task says nothing, as lm-eval's HFLM
_SEED = 1234  # lm-eval's


class ScorerLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's view of ``scorer``. Contexts that are too long lose their beginning, as in its HFLM, and it is said."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._scorer.start

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The model's tokens; BOS in front where its texts have it, unless ``add_special_tokens`` is False.

        A text that spells BOS at its beginning is not given another one, unless that is asked for.
        """
        tokens, bos = self._scorer.encode(string), self._scorer.bos
        unwanted = 1 if add_special_tokens is False else 2 if add_special_tokens is None else len(tokens) + 1
        return tokens[1:] if bos is not None and tokens[:unwanted] == [bos] * unwanted else tokens

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-likelihood of whole texts, in windows as long as the model's context.

        As HFLM's, which begins with `eot_token_id` and then lets BOS, where texts have it, count as a token.
        """
        sums = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.eot_token_id, self._scorer.context, 1)
            pairs = [make_disjoint_window(window) for window in windows]
            sums.append(
                sum(found for found, _ in log_likelihoods(self._scorer, [(list(a), list(b)) for a, b in pairs]))
            )
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The likeliest text after each context, up to the first of the request's stop words."""
        answers = []
        with progress("answers", len(requests)) as step:
            for number, request in enumerate(requests):
                context, settings = request.args[0], normalize_gen_kwargs(request.args[1], _ANSWER_TOKENS)
                limit = settings["max_gen_toks"]
                prompt = self._shortened(self.tok_encode(context), self._scorer.context - limit)
                stops = [stop for stop in settings["until"] if stop]
                answers.append(self._generate(prompt, stops, limit, _sampling(settings, number)))
                step("")
        return answers

    def _shortened(self, tokens: list[int], room: int) -> list[int]:
        """The last ``room`` tokens of a prompt."""
        if room < 1:
            raise TsconvertError(
                f"a task wants answers of {self._scorer.context - room} tokens, and the model's context has"
                f" {self._scorer.context}; set a smaller max_gen_toks in the task's file"
            )
        if len(tokens) > room:
            note(f"a prompt of {len(tokens)} tokens is too long: its last {room} are used, the rest is for the answer")
        return tokens[-room:]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return log_likelihoods(self._scorer, [(context, continuation) for _, context, continuation in requests])

    def _generate(self, prompt: list[int], stops: list[str], limit: int, sampling: Sampling) -> str:
        generate = getattr(self._scorer, "generate", None)
        if generate is None:
            raise TsconvertError("tasks that generate text need a GGUF file; export the model first")
        return str(generate(prompt, stops, limit, sampling))


def _sampling(settings: Mapping[str, Any], number: int) -> Sampling:
    """How a task's answers are drawn, with transformers' defaults as in HFLM; each with a seed of its own."""
    return Sampling(
        temperature=(settings.get("temperature") or 1.0) if settings["do_sample"] else 0.0,
        top_k=settings.get("top_k") or 50, top_p=settings.get("top_p") or 1.0, min_p=settings.get("min_p") or 0.0,
        repeat_penalty=settings.get("repetition_penalty") or 1.0, repeat_last=-1, seed=_SEED + number,
    )  # fmt: skip
