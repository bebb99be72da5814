"""`tsconvert eval`: perplexity, density and, against another model, divergence; of checkpoints and of GGUF files.

Text is cut into windows of ``context`` tokens that do not overlap (`spaced_rows` chooses some), and every token of a
window but its first is predicted, as the papers do it. Checkpoints run through the layer sweep, so that their size does
not matter.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import models
from ..convert.errors import TsconvertError
from ..convert.progress import progress

# Shape suffixes: N windows, S tokens a window, V vocabulary.
Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What `evaluate` is asked to do."""

    model: str
    """A checkpoint folder, an embedded model, a hub id, or a .gguf file."""
    data: str | None = None
    """A text; None takes the embedded held-out text."""
    tokens: int = 16_384
    context: int = 512
    mode: str = "auto"
    """For GGUF files: `auto`, `dense`, `exact` or `predicted`."""
    against: str | None = None
    """The model to compare with, on the same tokens."""
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What `evaluate` found."""

    model: str
    mode: str
    tokens: int
    perplexity: float
    density: list[float]
    """Share of neurons that fire, per layer; empty for SwiGLU."""
    predicted_density: list[float]
    """Share of neurons that the predictors name, per layer; empty without."""
    recall: list[float]
    """Share of the firing neurons that were predicted, per layer; empty without."""
    against: str | None = None
    against_perplexity: float | None = None
    kl_mean: float | None = None
    """Mean KL(against || model) per token, nats."""
    top1_agreement: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.mode}): perplexity {self.perplexity:.3f} on {self.tokens:,} tokens"]
        if self.density:
            lines.append(f"density {mean(self.density):.1%} ({', '.join(f'{d:.0%}' for d in self.density)})")
        if self.predicted_density:
            lines.append(f"predicted density {mean(self.predicted_density):.1%}, recall {mean(self.recall):.1%}")
        if self.against is not None:
            lines.append(
                f"against {self.against} (perplexity {self.against_perplexity:.3f}): KL {self.kl_mean:.5f} nats,"
                f" the same first choice for {self.top1_agreement:.1%} of the tokens"
            )
        return "\n".join(lines)


class Scorer(Protocol):
    """A model that gives next-token logits for windows of tokens."""

    mode: str
    context: int

    def encode(self, text: str) -> list[int]:
        """The model's tokens of ``text``."""

    def logits(self, rows_NS: Tokens) -> Iterator[Floats]:
        """[S, V] for each window."""

    def statistics(self) -> tuple[list[float], list[float], list[float]]:
        """Density, predicted density and recall per layer, of all that was scored."""


def evaluate(config: EvalConfig) -> EvalReport:
    """Perplexity of ``config.model``, and its divergence from ``config.against``.

    Raises:
        TsconvertError: a model or the text cannot be read, or the two models' vocabularies differ.
    """
    from ..convert.corpora import spaced_rows

    model = open_scorer(config.model, config.mode, config.threads)
    context = min(config.context, model.context)
    data = config.data or str(models.text("heldout.txt"))
    rows_NS = spaced_rows(model.encode, data, tokens=config.tokens, context=context)
    other = open_scorer(config.against, "auto", config.threads) if config.against else None
    loss, other_loss, divergence, agreed = _score(model, other, rows_NS)
    density, predicted, recall = model.statistics()
    return EvalReport(
        model=config.model, mode=model.mode, tokens=int(rows_NS.size), perplexity=float(np.exp(loss)),
        density=density, predicted_density=predicted, recall=recall, against=config.against,
        against_perplexity=None if other is None else float(np.exp(other_loss)),
        kl_mean=None if other is None else divergence, top1_agreement=None if other is None else agreed,
    )  # fmt: skip


def open_scorer(model: str, mode: str = "auto", threads: int | None = None) -> Scorer:
    """The scorer for a checkpoint or a GGUF file."""
    path = Path(model)
    if path.is_file():
        from .gguf_scorer import GgufScorer

        return GgufScorer(path, mode, threads)
    if mode not in ("auto", "dense"):
        raise TsconvertError(f"--sparsity {mode}: for GGUF files; a checkpoint always computes all of its neurons")
    from .checkpoint_scorer import CheckpointScorer

    return CheckpointScorer(model)


def _score(model: Scorer, other: Scorer | None, rows_NS: Tokens) -> tuple[float, float, float, float]:
    """Mean loss of both models, mean KL and share of equal first choices, over all predicted tokens."""
    ours = model.logits(rows_NS)
    theirs = other.logits(rows_NS) if other else None
    sums = np.zeros(4)
    count = 0
    with progress("windows", len(rows_NS)) as step:
        for row_S in rows_NS:
            log_SV = log_softmax(next(ours)[:-1])
            target_S = row_S[1:, None]
            count += len(target_S)
            sums[0] -= np.take_along_axis(log_SV, target_S, -1).sum()
            if theirs is not None:
                sums[1:] += _compare(log_SV, log_softmax(next(theirs)[:-1]), target_S)
            step("")
    loss, other_loss, divergence, agreed = (sums / count).tolist()
    return loss, other_loss, divergence, agreed


def _compare(log_SV: Floats, other_SV: Floats, target_S: Tokens) -> tuple[float, float, float]:
    if log_SV.shape != other_SV.shape:
        raise TsconvertError(
            f"the models have vocabularies of {log_SV.shape[1]} and {other_SV.shape[1]} tokens;"
            " compare models of one family"
        )
    other_loss = -np.take_along_axis(other_SV, target_S, -1).sum()
    divergence = (np.exp(other_SV) * (other_SV - log_SV)).sum()
    agreed = (log_SV.argmax(-1) == other_SV.argmax(-1)).sum()
    return float(other_loss), float(divergence), float(agreed)


def log_softmax(logits_SV: Floats) -> Floats:
    """Log-probabilities [S, V]."""
    shifted_SV = logits_SV - logits_SV.max(-1, keepdims=True)
    return np.asarray(shifted_SV - np.log(np.exp(shifted_SV).sum(-1, keepdims=True)), np.float32)


def mean(values: list[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / max(1, len(values))
