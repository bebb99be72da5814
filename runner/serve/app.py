"""The web application: routes, keys, errors, and requests that end when their client goes."""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ...common.errors import TsconvertError
from .engine import Chance, Engine
from .errors import ApiError
from .forms import FINISH_REASONS, ChatForm, Choice, Form, TextForm, Usage
from .requests import ChatRequest, CompletionRequest, read

_MOST_BYTES = 16 << 20
_PATIENCE_S = 60  # for a client that does not read what it asked for
_OPEN = ("/health", "/v1/health")


class Server:
    """What all requests share.

    Args:
        name: the model's, in answers.
        created: when it was made, in seconds since 1970.
        key: that clients must give; None for none.
    """

    def __init__(self, engine: Engine, *, name: str, created: int, key: str | None) -> None:
        self.engine, self.name, self.created, self._key = engine, name, created, key
        # rendering a template takes a process; tokenizing is quick but for long texts
        self._rendering = asyncio.Lock()

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            *(Route(path, self._health) for path in _OPEN),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._one_model),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
        ]
        keys = Middleware(AuthenticationMiddleware, backend=_Keys(self._key), on_error=_unauthorized)
        handlers: dict[Any, Any] = {
            ApiError: _refused, HTTPException: _no_such, ClientDisconnect: _left, TsconvertError: _failed,
            Exception: _broken,
        }  # fmt: skip
        return Starlette(routes=routes, middleware=[keys], exception_handlers=handlers)

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def _one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.name:
            raise ApiError(
                f"the model {name!r} does not exist; there is {self.name}", status=404, code="model_not_found"
            )
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "tsconvert"}

    async def _chat(self, request: Request) -> Response:
        asked = read(ChatRequest, await _body(request))
        return _Answer(self, asked, ChatForm(model=self.name, tokenizer=self.engine.model.tokenizer))

    async def _complete(self, request: Request) -> Response:
        asked = read(CompletionRequest, await _body(request))
        _ = asked.prompts
        return _Answer(self, asked, TextForm(model=self.name, tokenizer=self.engine.model.tokenizer))

    async def prompts(self, asked: ChatRequest | CompletionRequest) -> list[list[int]]:
        """The tokens of what was asked.

        Raises:
            ApiError: there are none, more than the context holds, or one that the model does not have.
        """
        model = self.engine.model
        async with self._rendering:
            if isinstance(asked, ChatRequest):
                found = [await run_in_threadpool(self._conversation, asked)]
            else:
                found = [
                    await run_in_threadpool(model.tokenizer.encode, text) if isinstance(text, str) else text
                    for text in asked.prompts
                ]
        name = "messages" if isinstance(asked, ChatRequest) else "prompt"
        for tokens in found:
            if not tokens:
                raise ApiError(f"{name}: no tokens; give some text", param=name)
            wrong = next((token for token in tokens if not 0 <= token < model.spec.vocab), None)
            if wrong is not None:
                raise ApiError(f"{name}: token {wrong} is none of the model's {model.spec.vocab}", param=name)
            if len(tokens) > model.context:
                raise ApiError(
                    f"{name}: {len(tokens)} tokens do not fit into the context of {model.context}; shorten it",
                    param=name, code="context_length_exceeded",
                )  # fmt: skip
        return found

    def _conversation(self, asked: ChatRequest) -> list[int]:
        tokenizer = self.engine.model.tokenizer
        if not tokenizer.chat_template:
            raise ApiError("the model has no chat template; use /v1/completions", code="no_chat_template")
        try:
            return tokenizer.chat([message.to_json() for message in asked.messages], advice="change the messages")
        except TsconvertError as error:
            said = str(error).removeprefix(f"{self.engine.model.source.file.path}: ")
            raise ApiError(said, param="messages") from None


class _Keys(AuthenticationBackend):
    """Whoever gives the key may ask."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """Raise unless the key was given, or is not needed."""
        given = conn.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if self._key is None or conn.url.path in _OPEN or secrets.compare_digest(given, self._key.encode()):
            return None
        raise AuthenticationError("the API key is missing or wrong; give it as Authorization: Bearer KEY")


class _Answer(Response):
    """Computed while it is sent; given up when the client goes."""

    def __init__(self, server: Server, asked: ChatRequest | CompletionRequest, form: Form) -> None:
        self.background = None
        self._server, self._asked, self._form = server, asked, form
        self._usage = Usage()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        work = asyncio.create_task(self._respond(scope, receive, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.wait({work, gone})
        if not work.cancelled():
            work.result()

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._server.engine
        async with engine.place():
            prompts = await self._server.prompts(self._asked)
            async with engine.turn():
                steps = self._steps(prompts)
                async with aclosing(steps):
                    if not self._asked.stream:
                        choices = self._collected([step async for step in steps])
                        answer = JSONResponse(self._form.whole(choices, self._usage))
                    else:
                        first = await anext(steps)  # what is wrong with the prompt shows before a stream begins
                        answer = StreamingResponse(self._events(first, steps), media_type="text/event-stream")
                        answer.headers["Cache-Control"] = "no-cache"

                        async def patient(message: Message) -> None:
                            async with asyncio.timeout(_PATIENCE_S):
                                await send(message)

                        with suppress(TimeoutError):
                            await answer.stream_response(patient)
                        return
        await answer(scope, receive, send)

    async def _steps(self, prompts: Sequence[Sequence[int]]) -> AsyncGenerator[Choice, None]:
        """What the choices grow by, one choice after the other; the last of each has ``finish``."""
        asked, engine = self._asked, self._server.engine
        for number, prompt in enumerate(prompts):
            self._usage.prompt += len(prompt)
            echoed = await self._echo(number, prompt)
            for draw in range(asked.n):
                index = number * asked.n + draw
                if echoed is not None:
                    yield Choice(index=index, text=echoed.text, chances=echoed.chances)
                if asked.limit == 0:
                    yield Choice(index=index, chances=self._chances(), finish="length")
                    continue
                generation = engine.model.generate(
                    prompt, limit=asked.limit if asked.limit >= 0 else engine.model.context,
                    sampling=asked.sampling(draw), stops=asked.stops, stop_at_eos=not asked.ignore_eos,
                )  # fmt: skip
                async with aclosing(engine.answer(prompt, generation, asked.top)) as found:
                    async for step in found:
                        yield Choice(index=index, text=step.text, chances=self._chances(step.chance))
                if not draw:
                    self._usage.cached += engine.reused
                self._usage.completion += len(generation.tokens)
                yield Choice(index=index, chances=self._chances(), finish=FINISH_REASONS[generation.finish])

    async def _echo(self, number: int, prompt: Sequence[int]) -> Choice | None:
        if not isinstance(self._asked, CompletionRequest) or not self._asked.echo:
            return None
        engine, top, given = self._server.engine, self._asked.top, self._asked.prompts[number]
        text = given if isinstance(given, str) else engine.model.tokenizer.decode(prompt)
        return Choice(index=0, text=text, chances=None if top is None else await engine.read(prompt, top))

    def _chances(self, chance: Chance | None = None) -> list[Chance] | None:
        return None if self._asked.top is None else [] if chance is None else [chance]

    def _collected(self, steps: Sequence[Choice]) -> list[Choice]:
        choices: dict[int, Choice] = {}
        for step in steps:
            choice = choices.setdefault(step.index, Choice(index=step.index, chances=self._chances()))
            choice.text += step.text
            choice.finish = step.finish or choice.finish
            if choice.chances is not None:
                choice.chances += step.chances or []
        return list(choices.values())

    async def _events(self, first: Choice, steps: AsyncIterator[Choice]) -> AsyncIterator[str]:
        begun: set[int] = set()
        try:
            step: Choice | None = first
            while step is not None:
                if step.text or step.chances or step.finish or step.index not in begun:
                    yield _event(self._form.chunk(step, first=step.index not in begun))
                    begun.add(step.index)
                step = await anext(steps, None)
            if self._asked.stream_options.include_usage:
                yield _event(self._form.last(self._usage))
            yield "data: [DONE]\n\n"
        except TsconvertError as error:
            yield _event(_engine_error(error).to_json())


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _MOST_BYTES:
            raise ApiError(f"the body is longer than {_MOST_BYTES >> 20} MiB", status=413)
        parts.append(part)
    return b"".join(parts)


def _engine_error(error: TsconvertError) -> ApiError:
    return ApiError(str(error), status=500, kind="server_error")


def _json(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(error.to_json(), status_code=error.status, headers=headers)


async def _refused(request: Request, error: ApiError) -> Response:  # noqa: ARG001
    return _json(error, {"Retry-After": "1"} if error.status == 503 else None)


async def _left(request: Request, error: ClientDisconnect) -> Response:  # noqa: ARG001
    return Response(status_code=400)  # nobody reads it


async def _failed(request: Request, error: TsconvertError) -> Response:  # noqa: ARG001
    return _json(_engine_error(error))


async def _no_such(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        said = f"no such URL: {request.method} {request.url.path}"
    elif error.status_code == 405:
        said = f"{request.url.path} does not take {request.method}"
    else:
        said = error.detail
    return _json(ApiError(said, status=error.status_code), dict(error.headers or {}))


async def _broken(request: Request, error: Exception) -> Response:  # noqa: ARG001
    return _json(ApiError("the server failed; its log says why", status=500, kind="server_error"))


def _unauthorized(conn: HTTPConnection, error: AuthenticationError) -> Response:  # noqa: ARG001
    return _json(ApiError(str(error), status=401, code="invalid_api_key"), {"WWW-Authenticate": "Bearer"})
