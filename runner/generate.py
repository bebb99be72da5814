"""Generating text: a prompt goes in, tokens come out one by one. Shape suffix: V vocabulary."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .density import Density, weight_bytes
from .files.model_file import ModelFile
from .sampling import Sampler, Sampling
from .stops import StopStrings
from .tokenizer import GgufTokenizer, TextStream


class LanguageModel(Protocol):
    """What generating asks of a model (`model.Model`)."""

    @property
    def source(self) -> ModelFile: ...  # noqa: D102
    @property
    def tokenizer(self) -> GgufTokenizer: ...  # noqa: D102
    @property
    def context(self) -> int: ...  # noqa: D102
    @property
    def position(self) -> int: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def threads(self) -> int: ...  # noqa: D102
    @property
    def density(self) -> Density: ...  # noqa: D102
    def reset(self, position: int = 0) -> None: ...  # noqa: D102
    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One generated token."""

    token: int
    text: str
    """What it adds to the text; empty while a character, or what may become a stop string, is incomplete."""


@dataclass(kw_only=True)
class Generation:
    """A prompt being answered: iterate over it for the pieces; the rest is filled in on the way.

    Example:
        >>> for piece in model.generate([1, 22, 333], limit=32):  # doctest: +SKIP
        ...     print(piece.text, end="", flush=True)
    """

    model: LanguageModel
    prompt: Sequence[int]
    limit: int
    """Tokens at most."""
    sampling: Sampling
    stop_at_eos: bool = True
    stops: Sequence[str] = ()
    """Strings that end the text; they are left out of it."""
    cached: Sequence[int] = ()
    """Tokens that the model has just seen: if the prompt begins with them, only the rest of it is read."""
    tokens: list[int] = field(default_factory=list)
    """Generated so far, the end token left out."""
    text: str = ""
    logits_V: npt.NDArray[np.float32] | None = None
    """Those that the last token was chosen from."""
    finish: str = "unfinished"
    """Why it ended: `eos`, `stop`, `length`, `context` or `interrupted`."""
    bandwidth: float = 0.0
    """Bytes a second that this machine reads, if that was measured."""
    prompt_read: int = 0
    """Tokens of the prompt that were not in the cache."""
    prompt_s: float = 0.0
    """Seconds for the prompt, up to the first token."""
    generation_s: float = 0.0
    """Seconds for all tokens after the first."""

    def __str__(self) -> str:
        return self.text

    def __iter__(self) -> Iterator[Piece]:
        stream, stops = TextStream(self.model.tokenizer, self.prompt), StopStrings(self.stops)
        for token in self._draw():
            yield self._piece(token, stops.push(stream.push(token)))
            if stops.found is not None:
                self.finish = "stop"
                return
        rest = stops.push(stream.flush()) + stops.flush()
        if stops.found is not None:
            self.finish = "stop"
        if rest:
            yield self._piece(self.tokens[-1], rest)

    def _draw(self) -> Iterator[int]:
        """The tokens, each drawn when it is asked for."""
        model, sampler = self.model, Sampler(self.sampling)
        self.logits_V = self._read_prompt()
        history = list(self.prompt)
        self.finish = "length"
        while len(self.tokens) < self.limit:
            token = sampler.choose(self.logits_V, history)
            if self.stop_at_eos and token in model.tokenizer.eos:
                self.finish = "eos"
                return
            self.tokens.append(token)
            history.append(token)
            yield token
            if model.position >= model.context:
                self.finish = "context"
                return
            if len(self.tokens) < self.limit:
                start_s = time.perf_counter()
                self.logits_V = model.feed([token])
                self.generation_s += time.perf_counter() - start_s

    def _read_prompt(self) -> npt.NDArray[np.float32]:
        start_s, known = time.perf_counter(), len(self.cached)
        if not (0 < known < len(self.prompt) and list(self.prompt[:known]) == list(self.cached)):
            known = 0
        self.model.reset(min(known, self.model.position))
        known = self.model.position
        logits_V = self.model.feed(self.prompt[known:])
        self.prompt_read, self.prompt_s = len(self.prompt) - known, time.perf_counter() - start_s
        return logits_V

    @property
    def held(self) -> list[int]:
        """The tokens whose keys and values the model holds now: what the next turn may go on from."""
        return [*self.prompt, *self.tokens][: self.model.position]

    def _piece(self, token: int, text: str) -> Piece:
        self.text += text
        return Piece(token=token, text=text)

    @property
    def prompt_speed(self) -> float:
        """Tokens per second."""
        return self.prompt_read / self.prompt_s if self.prompt_s else 0.0

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
            "bytes_per_token": round(self.bytes_per_token), "bandwidth": round(self.bandwidth) or None,
            "density": self.model.density.to_json(),
        }  # fmt: skip

    @property
    def bytes_per_token(self) -> float:
        """Bytes of weights that a token read, keys and values left out."""
        return weight_bytes(self.model.source, self.model.density, self.model.mode)

    def stats(self) -> str:
        """Lines for a person, after the text."""
        model, density = self.model, self.model.density
        prompt = f"prompt {self.prompt_read} tokens, {self.prompt_speed:.1f} tokens/s"
        generated = f"generated {len(self.tokens)}, {self.speed:.1f} tokens/s (ended by {self.finish})"
        size, speed = self.bytes_per_token, self.bytes_per_token * self.speed
        reads = f"weights: {size / 1e6:,.1f} MB a token, {speed / 1e9:.1f} GB/s"
        if self.bandwidth:
            reads += f", {speed / self.bandwidth:.0%} of the {self.bandwidth / 1e9:.1f} GB/s that this machine reads"
        head = f"{model.mode}, {model.threads} threads: {prompt}; {generated}"
        return "\n".join([head, reads, f"density: {density}", *density.by_layer()])
