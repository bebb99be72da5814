"""`tsconvert run`: a prompt from the command line, text to a stream as it comes."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..convert.errors import TsconvertError
from ..convert.progress import note
from .generate import Generation, generate
from .model import Model, load
from .sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run, and how."""

    file: Path
    prompt: str
    """`-` reads it from stdin."""
    tokens: int = 128
    """Generated at most."""
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
    seed: int | None = None
    chat: bool = False
    """Put the prompt into the model's chat template."""
    ignore_eos: bool = False
    stats: bool = False
    """Speed and density on stderr."""
    audit: bool = False
    """In predicted mode, compute the neurons that were not predicted as well, to know the recall; slow."""
    stream: TextIO | None = None
    """Where the text goes as it comes; None for nowhere."""

    def sampling(self) -> Sampling:
        """The part that chooses tokens."""
        return Sampling(
            temperature=self.temp, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p,
            repeat_penalty=self.repeat_penalty, seed=self.seed,
        )  # fmt: skip


def run(config: RunConfig) -> Generation:
    """Answer the prompt; the text goes to ``config.stream``, what was found is returned.

    Raises:
        TsconvertError: the file, the mode or an option is no good, or the prompt is empty or too long.
    """
    sampling = config.sampling()
    prompt = sys.stdin.read() if config.prompt == "-" else config.prompt
    with load(config.file, threads=config.threads, mode=config.sparsity, context=config.context) as model:
        model.audit = config.audit
        generation = generate(
            model, _tokens(model, prompt, config), limit=config.tokens, sampling=sampling,
            stop_at_eos=not config.ignore_eos,
        )  # fmt: skip
        for piece in generation:
            if config.stream is not None and piece.text:
                config.stream.write(piece.text)
                config.stream.flush()
        if config.stream is not None:
            config.stream.write("\n")
        if config.stats:
            note(generation.stats())
    return generation


def _tokens(model: Model, prompt: str, config: RunConfig) -> list[int]:
    if config.chat:
        return model.tokenizer.chat([{"role": "user", "content": prompt}])
    tokens = model.tokenizer.encode(prompt)
    if not tokens:
        raise TsconvertError("the prompt is empty and the model has no token that begins a text; give -p TEXT")
    return tokens
