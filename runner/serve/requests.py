"""Requests as the API has them: OpenAI's fields, and llama-server's where OpenAI has none.

What cannot be done is refused by name; null is as left out.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from ...common.errors import TsconvertError
from ...text.records import readable
from ..config import RunConfig
from ..sampling import Sampling
from .errors import ApiError

_MOST_CHOICES, _MOST_PROMPTS, _MOST_STOPS, _MOST_TOP = 16, 64, 16, 20
_WITHOUT_EFFECT = {
    "cache_prompt", "metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store",
    "user",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "best_of": (1,), "suffix": ("",),
}  # fmt: skip
"""Fields that are not supported, and what they may be nevertheless."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(_Part):
    """How to stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextPart(_Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart]
    name: str | None = None

    def to_json(self) -> dict[str, str]:
        """As chat templates take it, parts joined."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": readable(content)}


class Request(BaseModel):
    """What both kinds of request have. Defaults are those of `tsconvert run`."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str | None = None
    """Any name will do: there is one model."""
    max_tokens: Annotated[int, Field(ge=-1)] = -1
    """-1 until the model ends or the context is full, as in llama-server."""
    temperature: float = RunConfig.temp
    top_k: int = RunConfig.top_k
    top_p: float = RunConfig.top_p
    min_p: float = RunConfig.min_p
    repeat_penalty: float = RunConfig.repeat_penalty
    repeat_last_n: int = RunConfig.repeat_last
    seed: int | None = None
    """Of the first choice; the others follow."""
    stop: str | Annotated[list[str], Field(max_length=_MOST_STOPS)] = []
    n: Annotated[int, Field(ge=1, le=_MOST_CHOICES)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    ignore_eos: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end the text."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, number: int = 0) -> Sampling:
        """How the tokens of choice ``number`` are drawn."""
        seed = self.seed if self.seed is None or self.seed < 0 else self.seed + number
        try:
            return Sampling(
                temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
                repeat_penalty=self.repeat_penalty, repeat_last=self.repeat_last_n, seed=seed,
            )  # fmt: skip
        except TsconvertError as error:
            raise ApiError(str(error), param=str(error).split()[0]) from None


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=-1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP)] = 0

    @property
    def limit(self) -> int:
        """Tokens at most, -1 for no limit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def top(self) -> int | None:
        """How many likeliest tokens to tell with each token; None for no probabilities at all."""
        if self.top_logprobs and not self.logprobs:
            raise ApiError("top_logprobs: needs logprobs true", param="top_logprobs")
        return self.top_logprobs if self.logprobs else None


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=_MOST_TOP)] | None = None

    @property
    def limit(self) -> int:
        """As `ChatRequest.limit`."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """As `ChatRequest.top`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Texts, or tokens."""
        found: Any = self.prompt
        if isinstance(found, str) or (found and isinstance(found[0], int)):
            found = [found]
        if not 1 <= len(found) <= _MOST_PROMPTS:
            raise ApiError(f"prompt: {len(found)} prompts; give 1 to {_MOST_PROMPTS}", param="prompt")
        return found  # type: ignore[no-any-return]


Kind = TypeVar("Kind", ChatRequest, CompletionRequest)


def read(kind: type[Kind], body: bytes) -> Kind:
    """The request that ``body`` is.

    Raises:
        ApiError: it is none.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"the body is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ApiError("the body is no JSON object")
    values = {name: value for name, value in values.items() if value is not None and name not in _WITHOUT_EFFECT}
    for name, allowed in _NEUTRAL.items():
        if name in values and values.pop(name) not in allowed:
            raise ApiError(f"{name}: is not supported; leave it out", param=name, code="unsupported_parameter")
    try:
        request = kind.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        name = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or part in values or part.islower())
        unknown = found["type"] == "extra_forbidden"
        said = f"unrecognized request argument: {name}" if unknown else f"{name}: {found['msg']}"
        raise ApiError(said, param=name, code="unknown_parameter" if unknown else None) from None
    request.sampling()
    _ = request.top
    return request
