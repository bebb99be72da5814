"""`tsconvert eval`: perplexity, density and, against another model, divergence; of checkpoints and of GGUF files.

Checkpoints run through the layer sweep, so that their size does not matter; GGUF files through the runner, in any of
its modes. How text is cut into windows and which tokens count is windows.py's matter. docs/eval.md lists the JSON
output's keys, which scripts and `tsconvert check` count on.
"""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ... import embedded
from ...common.errors import TsconvertError
from ...common.files import reserved_name
from ...common.progress import progress
from ...text.sources import Source
from ..records.eval_report import CorpusScore, EvalReport, mean_or_none
from ..records.measures import PERPLEXITY, Scored
from ..records.reference_logits import LogitsWriter, StoredReference
from ..scoring.activity import Activity
from ..scoring.divergence import Compared, Doubles, LiveReference, Reference, diverge, log_softmax, loss_of, mean_error
from ..scoring.scorer import Scorer, open_scorer
from ..scoring.windowing import Windowing
from ..scoring.windows import Windows, cut
from .config import EvalConfig


@dataclass(frozen=True, kw_only=True)
class Text:
    """What is scored, and how it was cut."""

    windows: Windows
    how: Windowing
    sources: tuple[Source, ...] = ()
    stored: StoredReference | None = None
    """The predictions to compare with, if they say what is scored."""


def evaluate(config: EvalConfig) -> EvalReport:
    """Perplexity of ``config.model``, and its divergence from ``config.against``.

    Raises:
        TsconvertError: a model or the text cannot be read, or the two models' vocabularies differ.
    """
    stored = stored_reference(config)
    model = open_scorer(config.model, config.mode, config.threads, room(config, stored))
    return score(config, model, read_text(config, model, stored))[0]


def stored_reference(config: EvalConfig) -> StoredReference | None:
    """The stored predictions that ``config.against`` names, if it names some."""
    if config.against is None or Path(config.against).suffix != ".safetensors":
        return None
    if config.data:
        raise TsconvertError(f"--against {config.against}: the file says on which tokens to compare; leave --data out")
    return StoredReference(Path(config.against))


def room(config: EvalConfig, stored: StoredReference | None) -> int:
    """Tokens of the longest window."""
    return stored.how.context if stored else config.context


def read_text(config: EvalConfig, model: Scorer, stored: StoredReference | None) -> Text:
    """The windows of ``config.data`` in ``model``'s tokens, or those of ``stored``."""
    if stored is not None:
        return Text(windows=stored.windows, how=stored.how, stored=stored)
    sources = config.data or (Source(path=str(embedded.text("heldout.txt"))),)
    how = replace(config.windowing, context=min(config.context, model.context))
    return Text(windows=_cut(model, sources, how), how=how, sources=sources)


def _cut(model: Scorer, sources: tuple[Source, ...], how: Windowing) -> Windows:
    return cut(functools.partial(model.encode, parse_special=how.parses_special), model.bos, sources, how)


def require_same_text(text: Text, model: Scorer, other: Scorer, name: str) -> None:
    """Raise unless ``other``, called ``name``, has the same tokens as ``model`` for the ``text``, and room for them."""
    if other.context < text.how.context:
        raise TsconvertError(
            f"{name}: its context has {other.context} tokens, and windows have {text.how.context}; give --ctx"
            f" {other.context}"
        )
    if other.tokenizer_fingerprint == model.tokenizer_fingerprint or text.stored is not None:
        return
    theirs = _cut(other, text.sources, text.how)
    if not np.array_equal(theirs.rows_NS, text.windows.rows_NS):
        raise TsconvertError(
            f"{name}: its tokenizer cuts the text otherwise than the model's, and perplexities of other tokens are not"
            " to be compared; give a model with the same tokenizer"
        )


def score(config: EvalConfig, model: Scorer, text: Text) -> tuple[EvalReport, list[Scored]]:
    """What `evaluate` reports of ``model``, and the loss of each token, corpus by corpus."""
    windows, how, stored = text.windows, text.how, text.stored
    with reserved_name(config.save_logits) if config.save_logits else nullcontext():
        writer = LogitsWriter(config.save_logits, config.top) if config.save_logits else None
        reference: Reference | None = stored
        if stored is None and config.against is not None:
            other = open_scorer(config.against, "auto", config.threads, how.context)
            reference = LiveReference(config.against, other.logits(windows))
        loss_P, compared = _score(model, windows, reference, writer)
        if writer:
            writer.write(windows, how, config.model, model.fingerprint)
    scored = _by_corpus(windows, loss_P)
    report = _report(config, model, windows, how, loss_P, scored)
    if reference is None:
        return report, scored
    found = asdict(diverge(loss_P, compared))
    names = {"perplexity": "against_perplexity", "ratio": "perplexity_ratio", "ratio_error": "perplexity_ratio_error"}
    kept = stored.top if stored else None
    fields = {names.get(name, name): value for name, value in found.items()}
    return replace(report, against=reference.name, kept_logits=kept, **fields), scored


def losses(model: Scorer, text: Text) -> list[Scored]:
    """The loss of each token alone, corpus by corpus: what a baseline is asked for."""
    windows = replace(text.windows, counting=False)
    return _by_corpus(windows, _score(model, windows, None, None)[0])


def _score(
    model: Scorer, windows: Windows, reference: Reference | None, writer: LogitsWriter | None
) -> tuple[Doubles, list[Compared]]:
    """The loss of every token that counts, and each window's comparison with the reference."""
    losses: list[Doubles] = []
    compared: list[Compared] = []
    total = 0.0
    with progress("windows", len(windows.rows_NS)) as step:
        logits = model.logits(windows)
        for logits_PV, row_S, first in zip(logits, windows.rows_NS, windows.first_N, strict=True):
            log_PV, target_P = log_softmax(logits_PV), row_S[first + 1 :]
            losses.append(loss_of(log_PV, target_P))
            total += losses[-1].mean()
            if reference:
                compared.append(reference.compare(log_PV, target_P))
            if writer:
                writer.add(log_PV, target_P)
            step(f"perplexity {np.exp(total / len(losses)):.2f}")
    return np.concatenate(losses), compared


def _by_corpus(windows: Windows, loss_P: Doubles) -> list[Scored]:
    counted_N = [windows.rows_NS.shape[1] - 1 - first for first in windows.first_N]
    corpus_P = np.repeat(windows.corpus_N, counted_N)
    return [
        Scored(source=source, metric=PERPLEXITY, values_P=loss_P[corpus_P == number])
        for number, source in enumerate(windows.corpora)
    ]


def _report(
    config: EvalConfig, model: Scorer, windows: Windows, how: Windowing, loss_P: Doubles, scored: Sequence[Scored]
) -> EvalReport:
    activity = model.activity()
    perplexity = float(np.exp(loss_P.mean()))
    density, predicted, recall = activity.density(), activity.predicted_density(), activity.recall()
    return EvalReport(
        model=config.model, mode=model.mode, method=how.method, context=how.context, stride=how.stride,
        parse_special=how.parses_special, windows=len(windows.rows_NS), tokens=int(windows.rows_NS.size),
        counted=windows.counted,
        perplexity=perplexity, perplexity_error=perplexity * mean_error(loss_P), density=density,
        predicted_density=predicted, recall=recall, mean_density=mean_or_none(density),
        mean_predicted_density=mean_or_none(predicted), mean_recall=mean_or_none(recall),
        expert_density=activity.experts(), expert_tokens=activity.expert_tokens(),
        corpora=[_corpus(number, activity, windows, each) for number, each in enumerate(scored)],
    )  # fmt: skip


def _corpus(number: int, activity: Activity, windows: Windows, scored: Scored) -> CorpusScore:
    return CorpusScore(
        name=scored.source, tokens=windows.rows_NS.shape[1] * list(windows.corpus_N).count(number),
        counted=len(scored.values_P), perplexity=scored.value, perplexity_error=scored.error,
        density=mean_or_none(activity.density(number)),
        predicted_density=mean_or_none(activity.predicted_density(number)),
        recall=mean_or_none(activity.recall(number)),
    )  # fmt: skip
