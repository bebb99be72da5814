"""Generating text: a prompt goes in, tokens come out one by one."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .model import Model
from .sampling import Sampler, Sampling
from .tokenizer import TextStream


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One generated token."""

    token: int
    text: str
    """What it adds to the text; empty while a character is incomplete."""


@dataclass(kw_only=True)
class Generation:
    """A prompt being answered: iterate over it for the pieces; the rest is filled in on the way.

    Example:
        >>> for piece in generate(model, [1, 22, 333], limit=32):  # doctest: +SKIP
        ...     print(piece.text, end="", flush=True)
    """

    model: Model
    prompt: Sequence[int]
    limit: int
    """Tokens at most."""
    sampling: Sampling
    stop_at_eos: bool = True
    tokens: list[int] = field(default_factory=list)
    """Generated so far, the end token left out."""
    text: str = ""
    finish: str = "unfinished"
    """Why it ended: `eos`, `length` or `context`."""
    prompt_s: float = 0.0
    """Seconds for the prompt, up to the first token."""
    generation_s: float = 0.0
    """Seconds for all tokens after the first."""

    def __iter__(self) -> Iterator[Piece]:
        model, tokenizer = self.model, self.model.tokenizer
        start_s = time.perf_counter()
        model.reset()
        logits_V = model.feed(self.prompt)
        self.prompt_s = time.perf_counter() - start_s
        history = list(self.prompt)
        sampler, stream = Sampler(self.sampling), TextStream(tokenizer, self.prompt)
        self.finish = "length"
        while len(self.tokens) < self.limit:
            token = sampler.choose(logits_V, history)
            if self.stop_at_eos and token in tokenizer.eos:
                self.finish = "eos"
                break
            self.tokens.append(token)
            history.append(token)
            yield self._piece(token, stream.push(token))
            if model.position >= model.context:
                self.finish = "context"
                break
            if len(self.tokens) < self.limit:
                start_s = time.perf_counter()
                logits_V = model.feed([token])
                self.generation_s += time.perf_counter() - start_s
        rest = stream.flush()
        if rest:
            yield self._piece(self.tokens[-1], rest)

    def _piece(self, token: int, text: str) -> Piece:
        self.text += text
        return Piece(token=token, text=text)

    @property
    def prompt_speed(self) -> float:
        """Tokens per second."""
        return len(self.prompt) / self.prompt_s if self.prompt_s else 0.0

    @property
    def speed(self) -> float:
        """Generated tokens per second, the first left out: it came with the prompt."""
        return max(0, len(self.tokens) - 1) / self.generation_s if self.generation_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "text": self.text, "tokens": self.tokens, "finish": self.finish, "mode": self.model.mode,
            "threads": self.model.threads, "prompt_tokens": len(self.prompt), "generated_tokens": len(self.tokens),
            "prompt_tokens_per_s": round(self.prompt_speed, 2), "tokens_per_s": round(self.speed, 2),
            "density": self.model.density.to_json(),
        }  # fmt: skip

    def stats(self) -> str:
        """A few lines for a person, after the text."""
        model, density = self.model, self.model.density
        prompt = f"prompt {len(self.prompt)} tokens, {self.prompt_speed:.1f} tokens/s"
        generated = f"generated {len(self.tokens)}, {self.speed:.1f} tokens/s (ended by {self.finish})"
        return f"{model.mode}, {model.threads} threads: {prompt}; {generated}\ndensity: {density}"


def generate(
    model: Model,
    prompt: str | Sequence[int],
    *,
    limit: int = 128,
    sampling: Sampling | None = None,
    stop_at_eos: bool = True,
) -> Generation:
    """Answer ``prompt`` from an empty cache; nothing is computed before the result is iterated over.

    Args:
        prompt: text, which the model's tokenizer encodes, or tokens.
        limit: tokens at most.
        sampling: greedy without.
        stop_at_eos: end at the model's end token.

    Raises:
        TsconvertError: while iterating, when the prompt is empty or does not fit into the context.
    """
    tokens = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    return Generation(model=model, prompt=tokens, limit=limit, sampling=sampling or Sampling(), stop_at_eos=stop_at_eos)
