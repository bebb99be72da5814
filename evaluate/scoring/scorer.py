"""What can be scored: a model that gives logits for windows of tokens, whatever file it is in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ...common.errors import TsconvertError
from .activity import Activity
from .divergence import Floats
from .windows import Windows


class Scorer(Protocol):
    """A model that gives next-token logits for windows of tokens."""

    mode: str
    context: int
    """Tokens that a window may have."""

    @property
    def bos(self) -> int | None:
        """The token that the tokenizer begins texts with, None where it puts none."""

    @property
    def start(self) -> int:
        """What stands before a text that has nothing before it: ``bos``, else the token that ends texts."""

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""

    @property
    def tokenizer_fingerprint(self) -> str:
        """A hash of what the tokenizer is made of: models that share it cut texts alike."""

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The model's tokens of ``text``; special tokens that it spells are text unless ``parse_special``."""

    def logits(self, windows: Windows) -> Iterator[Floats]:
        """[P, V] for each window: of the positions whose next token counts."""

    def activity(self) -> Activity:
        """What the neurons did in the windows that were scored so far."""


def open_scorer(model: str, mode: str = "auto", threads: int | None = None, context: int | None = None) -> Scorer:
    """The scorer for a GGUF file, a checkpoint that tsconvert knows, or any other that transformers knows.

    Args:
        mode: for GGUF files; a checkpoint computes all of its neurons.
        context: tokens of the longest window; None for the model's own.

    Raises:
        TsconvertError: nothing is there, or it cannot be scored.
    """
    path = Path(model)
    if path.is_file():
        from .gguf_scorer import GgufScorer

        return GgufScorer(path, mode, threads, context)
    if mode not in ("auto", "dense"):
        raise TsconvertError(
            f"--sparsity {mode}: a checkpoint always computes all of its neurons; leave it out, or export a GGUF file"
        )
    from ...model.families import DENSE_TYPES, SPARSE_TYPES
    from ...model.files.locate import find_model
    from ...model.spec import read_config

    folder = find_model(model)
    if read_config(folder).get("model_type") in DENSE_TYPES | SPARSE_TYPES:
        from .checkpoint_scorer import CheckpointScorer

        return CheckpointScorer(folder)
    from .transformers_scorer import TransformersScorer

    return TransformersScorer(folder)
