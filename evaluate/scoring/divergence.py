"""How far one model's predictions are from a reference's: the figures of llama-perplexity --kl-divergence.

KL(reference || model) per token, in nats. Mean, error of the mean and quantiles are taken over tokens; the error of the
perplexity's ratio is that of the mean of ln p_reference - ln p_model over the tokens, in which what both models
find hard cancels (the covariance of llama.cpp's `kl_divergence`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError

# Shape suffixes: P predictions (tokens that count), V vocabulary.
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]
_BLOCK = 64  # predictions looked at together: their temporaries are several times V wide


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One window's predictions against the reference's."""

    loss_P: Doubles
    """The reference's: -ln p of the token that came."""
    kl_P: Doubles
    same_P: npt.NDArray[np.bool_]
    """Both have the same first choice."""


class Reference(Protocol):
    """Predictions to compare with, window by window in order."""

    name: str

    def compare(self, log_PV: Floats, target_P: Tokens) -> Compared:
        """Take the next window: ``log_PV`` are the model's log-probabilities, ``target_P`` the tokens that came."""


class LiveReference:
    """Another model, run beside.

    Args:
        logits: its logits [P, V] of each window.
    """

    def __init__(self, name: str, logits: Iterator[Floats]) -> None:
        self.name, self._logits = name, logits

    def compare(self, log_PV: Floats, target_P: Tokens) -> Compared:
        """`Reference.compare`, over the whole vocabulary."""
        wanted_PV = log_softmax(next(self._logits))
        require_same_vocabulary(log_PV.shape[1], wanted_PV.shape[1])
        kl_P = np.empty(len(target_P))
        for at in range(0, len(target_P), _BLOCK):
            block = slice(at, at + _BLOCK)
            difference_PV = wanted_PV[block] - log_PV[block]
            kl_P[block] = (np.exp(wanted_PV[block]) * difference_PV).sum(-1, dtype=np.float64)
        same_P = log_PV.argmax(-1) == wanted_PV.argmax(-1)
        return Compared(loss_P=loss_of(wanted_PV, target_P), kl_P=kl_P, same_P=same_P)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """What the comparison of all windows found."""

    perplexity: float
    """The reference's."""
    ratio: float
    """The model's perplexity over the reference's."""
    ratio_error: float
    """Standard error of ``ratio``."""
    kl_mean: float
    """Nats a token."""
    kl_mean_error: float
    kl_median: float
    kl_99: float
    """The divergence of 99 % of the tokens is at most this."""
    kl_max: float
    top1_agreement: float
    """Share of the tokens with the same first choice, 0 to 1."""


def diverge(loss_P: Doubles, compared: list[Compared]) -> Divergence:
    """Summarize the windows ``compared``; ``loss_P`` is the model's loss on all of their tokens."""
    theirs_P = np.concatenate([each.loss_P for each in compared])
    kl_P = np.concatenate([each.kl_P for each in compared])
    same_P = np.concatenate([each.same_P for each in compared])
    difference_P = loss_P - theirs_P
    ratio = float(np.exp(difference_P.mean()))
    return Divergence(
        perplexity=float(np.exp(theirs_P.mean())), ratio=ratio, ratio_error=ratio * mean_error(difference_P),
        kl_mean=float(kl_P.mean()), kl_mean_error=mean_error(kl_P), kl_median=float(np.median(kl_P)),
        kl_99=float(np.quantile(kl_P, 0.99)), kl_max=float(kl_P.max()), top1_agreement=float(same_P.mean()),
    )  # fmt: skip


def log_softmax(logits_PV: Floats) -> Floats:
    """Log-probabilities [P, V]; the sum is a float64's, for small divergences are differences of these."""
    log_PV = np.asarray(logits_PV - logits_PV.max(-1, keepdims=True), np.float32)
    for at in range(0, len(log_PV), _BLOCK):
        block_PV = log_PV[at : at + _BLOCK]
        block_PV -= np.log(np.exp(block_PV).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return log_PV


def loss_of(log_PV: Floats, target_P: Tokens) -> Doubles:
    """-ln p of the tokens that came."""
    return -np.take_along_axis(log_PV, target_P[:, None], -1)[:, 0].astype(np.float64)


def mean_error(values_P: Doubles) -> float:
    """Standard error of the mean of ``values_P``."""
    return float(values_P.std() / np.sqrt(max(1, len(values_P) - 1)))


def require_same_vocabulary(ours: int, theirs: int) -> None:
    """Raise unless both models have as many tokens."""
    if ours != theirs:
        raise TsconvertError(
            f"the models have vocabularies of {ours} and {theirs} tokens; compare models of one family"
        )
