"""`tsconvert run`: a prompt or a conversation, text to a stream as it comes."""

import io
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from ..common.errors import TsconvertError
from ..common.progress import note
from .config import RunConfig
from .conversation import Conversation
from .generate import Generation
from .kernels.bandwidth import measure_bandwidth
from .model import Model, load
from .sampling import Sampling


def run(config: RunConfig) -> Generation | Conversation:
    """Answer the prompt, or converse; the text goes to ``config.stream``, what was found is returned.

    Ctrl-C ends an answer where it stands: ``finish`` is then `interrupted`, and the text so far is kept.

    Raises:
        TsconvertError: the file, the mode or an option is no good, or the prompt is empty or too long.
    """
    sampling_of(config)  # refused before the file is read
    # of stdin all but its last line end, as llama.cpp reads a prompt from a file
    prompt = _stdin().read().removesuffix("\n") if config.prompt == "-" else config.prompt
    with load(config.file, threads=config.threads, mode=config.sparsity, context=config.context) as model:
        if config.audit and model.mode != "predicted":
            raise TsconvertError(f"--audit: {config.file} runs in {model.mode} mode and misses nothing; leave it out")
        model.audit = config.audit
        if model.context > model.spec.context:
            note(f"--context {model.context}: the model was trained for {model.spec.context}, and may write nonsense")
        if config.chat:
            conversation = Conversation(model=model, system=config.system)
            if prompt is None:
                _converse(conversation, config)
                return conversation
            return _say(conversation.ask(prompt, **_options(config)), config)
        return _say(model.generate(_tokens(model, prompt or ""), **_options(config)), config)


def _stdin() -> TextIO:
    """stdin, with U+FFFD for what is no UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


def sampling_of(config: RunConfig) -> Sampling:
    """The part of ``config`` that chooses tokens."""
    return Sampling(
        temperature=config.temp, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p,
        repeat_penalty=config.repeat_penalty, repeat_last=config.repeat_last, seed=config.seed,
    )  # fmt: skip


def _options(config: RunConfig) -> dict[str, Any]:
    return {
        "limit": config.tokens if config.tokens >= 0 else sys.maxsize,
        "sampling": sampling_of(config), "stop_at_eos": not config.ignore_eos,
        "stops": config.stop,
    }  # fmt: skip


def _converse(conversation: Conversation, config: RunConfig) -> None:
    """A turn a line, until there are no more, or Ctrl-C between two turns."""
    lines = config.lines or _stdin()
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
            if conversation.turns and len(answer.prompt) > conversation.model.context:
                conversation.end_full()
                note(
                    f"the context of {conversation.model.context} tokens is full: the conversation ends; -c gives more"
                )
                return
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
