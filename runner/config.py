"""What `run` and `bench` are asked to do."""

from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..common.errors import TsconvertError

MODES = ("auto", "predicted", "exact", "dense")
"""Which neurons are computed; `auto` is the sparsest mode that a file allows."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run, and how."""

    file: Path
    prompt: str | None = None
    """`-` reads it from stdin. None, with ``chat``: every line of ``lines`` is a turn."""
    tokens: int = 128
    """Generated at most, in each turn; -1 until the model ends or the context is full."""
    sparsity: str = "auto"
    """One of `MODES`."""
    threads: int | None = None
    context: int | None = None
    """Tokens; None for the model's own, 4096 at most; 0 for all of the model's own."""
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


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve, and where."""

    file: Path
    host: str = "127.0.0.1"
    """The address to listen at; this machine alone reaches the default."""
    port: int = 8080
    """0 takes any that is free."""
    api_key: str | None = None
    """What clients must give as `Authorization: Bearer KEY`; None for nothing."""
    queue: int = 32
    """Requests that may wait while another is answered."""
    sparsity: str = "auto"
    """As `RunConfig.sparsity`."""
    threads: int | None = None
    context: int | None = None
    """As `RunConfig.context`."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise TsconvertError(f"--port {self.port}: it must be 0 to 65535")
        if self.queue < 0:
            raise TsconvertError(f"--queue {self.queue}: it must be at least 0")
        if self.api_key == "":
            raise TsconvertError("--api-key is empty; leave it out, or give one")


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    file: Path
    prompt: int = 128
    """Tokens read at once; 0 leaves that test out."""
    generate: int = 64
    """Tokens generated one by one; 0 leaves that test out."""
    repetitions: int = 5
    threads: int | None = None
    """None for the cores that the process may use."""
    modes: tuple[str, ...] = ("all",)
    """`dense`, `exact`, `predicted`, `auto`, or `all` for every one that the file allows."""
    seed: int = 0
    """Seed of the prompt's random tokens."""

    def __post_init__(self) -> None:
        for name in ("prompt", "generate"):
            if getattr(self, name) < 0:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.repetitions < 1:
            raise TsconvertError(f"repetitions is {self.repetitions}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ShapeConfig:
    """Of what shape and how active a model to measure."""

    model: str
    """A config.json, a checkpoint folder, an embedded model or a hub id (of which only config.json is read)."""
    density: float = 0.1
    """Share of neurons that fire, above 0 and at most 1."""
    predicted: float | None = None
    """Share that predictors name; None is 1.2 times the density."""
    rank: int | None = None
    """Rank of the predictors, in 32s; None gives them 4 % of the model's weights."""
    type_name: str = "Q4_0"
    """`Q4_0` or `Q8_0`."""
    predictor_type: str = "Q4_0"
    """`Q4_0` or `Q8_0`."""
    generate: int = 64
    """Tokens generated in each repetition."""
    repetitions: int = 5
    threads: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("density", "predicted"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise TsconvertError(f"--{name} {value:g}: it must be above 0 and at most 1")
        if self.predicted is not None and self.predicted < self.density:
            raise TsconvertError(
                f"--predicted {self.predicted:g} with --density {self.density:g}: predictors name at least what fires"
            )
        for name in ("generate", "repetitions"):
            if getattr(self, name) < 1:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 1")
