"""`tsconvert run`: a prompt or a conversation, text to a stream as it comes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..common.errors import TsconvertError
from ..common.progress import note
from .conversation import Conversation
from .generate import Generation, generate
from .kernels.bandwidth import measure_bandwidth
from .model import Model, load
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run, and how."""

    file: Path
    prompt: str | None = None
    """`-` reads it from stdin. None, with ``chat``: every line of ``lines`` is a turn."""
    tokens: int = 128
    """Generated at most, in each turn."""
    sparsity: str = "auto"
    """`auto`, `predicted`, `exact` or `dense`."""
    threads: int | None = None
    context: int | None = None
    """Tokens; None for the model's own, 4096 at most."""
    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    """Tokens that the penalty looks back on."""
    seed: int | None = None
    chat: bool = False
    """Put the prompt into the model's chat template."""
    system: str | None = None
    """The system's message before the conversation."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are left out of it."""
    ignore_eos: bool = False
    stats: bool = False
    """Speed, bytes read and density on stderr."""
    audit: bool = False
    """In predicted mode, compute the neurons that were not predicted as well, to know the recall; slow."""
    stream: TextIO | None = None
    """Where the text goes as it comes; None for nowhere."""
    lines: TextIO | None = None
    """Where a conversation's turns come from; None for stdin."""

    def __post_init__(self) -> None:
        if self.prompt is None and not self.chat:
            raise TsconvertError("there is no prompt: give -p TEXT, or --chat for a conversation")
        if self.system is not None and not self.chat:
            raise TsconvertError("--system is a conversation's: add --chat")

    def sampling(self) -> Sampling:
        """The part that chooses tokens."""
        return Sampling(
            temperature=self.temp, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            repeat_penalty=self.repeat_penalty, repeat_last=self.repeat_last, seed=self.seed,
        )  # fmt: skip


def run(config: RunConfig) -> Generation | Conversation:
    """Answer the prompt, or converse; the text goes to ``config.stream``, what was found is returned.

    Ctrl-C ends an answer where it stands: ``finish`` is then `interrupted`, and the text so far is kept.

    Raises:
        TsconvertError: the file, the mode or an option is no good, or the prompt is empty or too long.
    """
    config.sampling()  # refused before the file is read
    prompt = sys.stdin.read() if config.prompt == "-" else config.prompt
    with load(config.file, threads=config.threads, mode=config.sparsity, context=config.context) as model:
        model.audit = config.audit
        if config.chat:
            conversation = Conversation(model=model, system=config.system)
            if prompt is None:
                _converse(conversation, config)
                return conversation
            return _say(conversation.ask(prompt, **_options(config)), config)
        return _say(generate(model, _tokens(model, prompt or ""), **_options(config)), config)


def _options(config: RunConfig) -> dict[str, Any]:
    return {
        "limit": config.tokens, "sampling": config.sampling(), "stop_at_eos": not config.ignore_eos,
        "stops": config.stop,
    }  # fmt: skip


def _converse(conversation: Conversation, config: RunConfig) -> None:
    """A turn a line, until there are no more, or Ctrl-C between two turns."""
    lines = config.lines or sys.stdin
    asks = lines.isatty() and sys.stderr.isatty()
    while not conversation.interrupted:
        if asks:
            sys.stderr.write("> ")
            sys.stderr.flush()
        try:
            line = lines.readline()
        except KeyboardInterrupt:
            conversation.interrupted = True
            return
        if not line:
            return
        if line.strip():
            answer = conversation.ask(line.rstrip("\n"), **_options(config))
            conversation.keep(_say(answer, config))
            conversation.interrupted = answer.finish == "interrupted" and not asks


def _say(generation: Generation, config: RunConfig) -> Generation:
    """The text to the stream as it comes; a person's Ctrl-C ends it."""
    try:
        for piece in generation:
            if config.stream is not None and piece.text:
                config.stream.write(piece.text)
                config.stream.flush()
    except KeyboardInterrupt:
        generation.finish = "interrupted"
    if config.stream is not None:
        config.stream.write("\n")
        config.stream.flush()
    if config.stats:
        generation.bandwidth = measure_bandwidth(generation.model.threads)
        note(generation.stats())
    return generation


def _tokens(model: Model, prompt: str) -> Sequence[int]:
    tokens = model.tokenizer.encode(prompt)
    if not tokens:
        raise TsconvertError("the prompt is empty and the model has no token that begins a text; give -p TEXT")
    return tokens
