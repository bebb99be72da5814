"""One model for many requests: one generation at a time, the others wait in a queue of limited length.

The model runs in one thread, a step a call, so that a request that is cancelled holds it for one step at most. A prompt
goes on from what the cache holds of it. Where the prompts' beginnings are the same, tokens are read in blocks as if
nothing had been there, for a block of one token rounds otherwise than a longer one: so an answer has the same bits
whoever asked before. A conversation that continues with the model's own answer goes on from it, as `run --chat` does.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..generate import Generation
from ..kernels.parameters import BLOCK
from ..model import Model
from .errors import ApiError

Found = TypeVar("Found")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How likely a token was, and which ones were likeliest: natural logarithms, before any sampling."""

    token: int
    logprob: float | None
    """None for a text's first token."""
    top: list[tuple[int, float]]
    """Likeliest first."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of the model gave."""

    text: str
    chance: Chance | None = None


class Engine:
    """The model, and who is waiting for it.

    Args:
        waiting: how many requests may wait while another is answered.
    """

    def __init__(self, model: Model, waiting: int) -> None:
        self.model, self._waiting = model, waiting
        self._asked, self._turn = 0, asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._prompt: Sequence[int] = ()
        self._generation: Generation | None = None
        self._clean = 0  # so many tokens of the prompt are in the cache as if they had been read alone
        self._reads_clean = True
        self.reused = 0
        """Tokens of the last prompt that the cache held."""

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the queue.

        Raises:
            ApiError: none is left.
        """
        if self._asked > self._waiting:
            raise ApiError(
                f"the server answers one request at a time and {self._waiting} are waiting; try again later",
                status=503, kind="server_error", code="server_busy",
            )  # fmt: skip
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def turn(self) -> asyncio.Lock:
        """Entered by the one that may use the model; first come, first served."""
        return self._turn

    async def answer(
        self, prompt: Sequence[int], generation: Generation, top: int | None
    ) -> AsyncGenerator[Step, None]:
        """The steps of ``generation``, which answers ``prompt``; ``top`` likeliest tokens with each unless None."""
        await self._call(self._begin, prompt)
        while await self._call(self._read_block):
            pass
        generation.cached = prompt[: self.model.position]
        self._generation = generation
        pieces = iter(generation)

        def step() -> Step | None:
            known = len(generation.tokens)
            piece = next(pieces, None)
            if piece is None:
                return None
            new = len(generation.tokens) > known and top is not None and generation.logits_V is not None
            return Step(text=piece.text, chance=chance(generation.logits_V, piece.token, top or 0) if new else None)

        while (found := await self._call(step)) is not None:
            yield found

    async def read(self, prompt: Sequence[int], top: int) -> list[Chance]:
        """How likely each token of a prompt was after those before it."""
        await self._call(self._begin, prompt, False)
        blocks, found = self.model.logits_blocks(prompt), [Chance(token=prompt[0], logprob=None, top=[])]

        def step() -> bool:
            block_TV = next(blocks, None)
            if block_TV is not None:
                following = prompt[len(found) : len(found) + len(block_TV)]
                found.extend(chance(logits_V, token, top) for logits_V, token in zip(block_TV, following, strict=False))
            return block_TV is not None

        while await self._call(step):
            pass
        return found

    def close(self) -> None:
        """Wait for the last step."""
        self._thread.shutdown()

    async def _call(self, function: Callable[..., Found], *arguments: Any) -> Found:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _begin(self, prompt: Sequence[int], reuse: bool = True) -> None:
        """Keep in the cache what the prompt can go on from."""
        model, held = self.model, self._held()
        clean = list(self._prompt[: self._clean_tokens()])
        continues = reuse and len(clean) < len(held) < len(prompt) and list(prompt[: len(held)]) == held
        known = len(held) if continues else reusable(clean, prompt) if reuse else 0
        self._clean = min(known, len(clean))
        model.reset(known)
        if model.position < known:
            self._clean, continues = 0, False
        self._reads_clean = not continues
        self._prompt, self._generation, self.reused = list(prompt), None, model.position

    def _read_block(self) -> bool:
        """Read a block of the prompt, but not the last one; False when that is all there is."""
        at = self.model.position
        more = len(self._prompt) - at > BLOCK
        if more:
            self.model.feed(self._prompt[at : at + BLOCK])
        return more

    def _held(self) -> list[int]:
        if self._generation is not None:
            return self._generation.held
        return list(self._prompt[: self.model.position])

    def _clean_tokens(self) -> int:
        if not self._reads_clean:
            return self._clean
        return min(self.model.position, len(self._prompt) - (len(self._prompt) % BLOCK == 1))


def reusable(clean: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens of ``prompt`` need not be read, for the cache holds ``clean``, read in blocks.

    The rest is read in blocks of one token where, and only where, reading all of it would have one.
    """
    common = next(
        (i for i, (a, b) in enumerate(zip(clean, prompt, strict=False)) if a != b), min(len(clean), len(prompt))
    )
    if len(prompt) % BLOCK == 1:
        return min(common, len(prompt) - 1) // BLOCK * BLOCK
    known = max(0, min(common, len(prompt) - 2))
    return known - 1 if known and (len(prompt) - known) % BLOCK == 1 else known


def chance(logits_V: Floats | None, token: int, top: int) -> Chance:
    """Of a token that was chosen from ``logits_V``."""
    assert logits_V is not None
    log_V = logits_V.astype(np.float64) - float(logits_V.max())
    log_V -= np.log(np.exp(log_V).sum())
    best = np.argpartition(-log_V, top)[:top] if 0 < top < len(log_V) else np.arange(len(log_V) if top else 0)
    best = best[np.lexsort((best, -log_V[best]))]
    return Chance(token=token, logprob=float(log_V[token]), top=[(int(i), float(log_V[i])) for i in best])
