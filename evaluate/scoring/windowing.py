"""How text is cut into windows: by which method (windows.py describes them), how long, and how many."""

from dataclasses import dataclass

from ...common.errors import TsconvertError, shown

METHODS = ("llama.cpp", "papers")


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """How text is cut."""

    method: str = "llama.cpp"
    """One of `METHODS`."""
    context: int = 512
    """Tokens a window."""
    stride: int | None = None
    """Tokens from one window's start to the next one's; None as the method does it."""
    tokens: int = 16_000
    """At most this many tokens of all corpora together; the windows are spread evenly over the text."""
    parse_special: bool | None = None
    """Special tokens that the text spells, such as <s>, are those tokens; False: they are text. None: as the method."""
    chunks: int | None = None
    """Instead of ``tokens``: the first so many windows of each corpus, as llama-perplexity --chunks."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise TsconvertError(f"--method is {shown(self.method)}: it must be one of {', '.join(METHODS)}")
        if self.context < 4:
            raise TsconvertError(f"--ctx is {self.context}: it must be at least 4")
        if self.stride is not None and not 1 <= self.stride < self.context + (self.method == "papers"):
            raise TsconvertError(f"--stride is {self.stride}: it must be at least 1 and less than --ctx {self.context}")
        if self.chunks is not None and self.chunks < 1:
            raise TsconvertError(f"--chunks is {self.chunks}: it must be at least 1")

    @property
    def parses_special(self) -> bool:
        """Whether spelled special tokens are tokens: to transformers, which papers use, not to llama.cpp."""
        return self.method == "papers" if self.parse_special is None else self.parse_special

    @property
    def step(self) -> int:
        """Tokens from one window's start to the next one's."""
        return self.stride or self.context
