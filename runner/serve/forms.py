"""Answers as the API has them: whole, or in chunks of a stream."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..tokenizer import GgufTokenizer
from .engine import Chance

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
"""`Generation.finish` in the API's words."""
Json = dict[str, Any]


@dataclass(kw_only=True)
class Choice:
    """One answer to one prompt, as far as it went."""

    index: int
    text: str = ""
    chances: list[Chance] | None = None
    """Of each token; None where they were not asked for."""
    finish: str | None = None


@dataclass(kw_only=True)
class Usage:
    """Tokens that a request took."""

    prompt: int = 0
    cached: int = 0
    """Of the prompt's tokens, those that did not have to be read."""
    completion: int = 0

    def to_json(self) -> Json:
        """As the API has it."""
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion, "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


@dataclass(kw_only=True)
class Form(ABC):
    """What chat and text completions have in common."""

    model: str
    tokenizer: GgufTokenizer
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    written: dict[int, int] = field(default_factory=dict)
    """Characters of each choice's tokens so far."""

    kind, chunk_kind, prefix = "", "", ""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> Json:
        """A response."""
        return self._head(self.kind, [self._whole(choice) for choice in choices]) | {"usage": usage.to_json()}

    def chunk(self, delta: Choice, *, first: bool = False) -> Json:
        """What a choice grew by."""
        return self._head(self.chunk_kind, [self._delta(delta, first)])

    def last(self, usage: Usage) -> Json:
        """The chunk that tells the usage."""
        return self._head(self.chunk_kind, []) | {"usage": usage.to_json()}

    def _head(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": f"{self.prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model,
            "choices": choices,
        }  # fmt: skip

    @abstractmethod
    def _whole(self, choice: Choice) -> Json:
        """A choice of a response."""

    @abstractmethod
    def _delta(self, delta: Choice, first: bool) -> Json:
        """A choice of a chunk."""


class ChatForm(Form):
    """Answers of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def _whole(self, choice: Choice) -> Json:
        message = {"role": "assistant", "content": choice.text}
        return self._choice(choice, {"message": message})

    def _delta(self, delta: Choice, first: bool) -> Json:
        role = {"role": "assistant"} if first else {}
        return self._choice(delta, {"delta": {**role, "content": delta.text} if first or delta.text else {}})

    def _choice(self, choice: Choice, content: Json) -> Json:
        found = None
        if choice.chances is not None:
            found = {"content": [self._chance(chance) for chance in choice.chances]}
        return {"index": choice.index, **content, "logprobs": found, "finish_reason": choice.finish}

    def _chance(self, chance: Chance) -> Json:
        top = [self._token(token, logprob) for token, logprob in chance.top]
        return self._token(chance.token, chance.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float | None) -> Json:
        content = self.tokenizer.token_bytes(token)
        return {"token": content.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(content)}


class TextForm(Form):
    """Answers of /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def _whole(self, choice: Choice) -> Json:
        return self._delta(choice, False)

    def _delta(self, delta: Choice, first: bool) -> Json:  # noqa: ARG002
        found = None if delta.chances is None else self._chances(delta.index, delta.chances)
        return {"index": delta.index, "text": delta.text, "logprobs": found, "finish_reason": delta.finish}

    def _chances(self, index: int, chances: Sequence[Chance]) -> Json:
        names, offsets = [self._name(chance.token) for chance in chances], []
        at = self.written.get(index, 0)
        for name in names:
            offsets.append(at)
            at += len(name)
        self.written[index] = at
        return {
            "tokens": names, "token_logprobs": [chance.logprob for chance in chances], "text_offset": offsets,
            "top_logprobs": [
                None if chance.logprob is None else {self._name(token): logprob for token, logprob in chance.top}
                for chance in chances
            ],
        }  # fmt: skip

    def _name(self, token: int) -> str:
        """A token's text; what is no whole character as `bytes:\\xe4`, as OpenAI has it."""
        content = self.tokenizer.token_bytes(token)
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
