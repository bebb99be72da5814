"""`tsconvert eval`: perplexity, density and, against another model, divergence; of checkpoints and of GGUF files.

Checkpoints run through the layer sweep, so that their size does not matter; GGUF files through the runner, in any of
its modes. How text is cut into windows and which tokens count is windows.py's matter. docs/eval.md lists the JSON
output's keys, which scripts and `tsconvert check` count on.
"""

import functools
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ... import embedded
from ...common.errors import TsconvertError
from ...common.files import reserved_name
from ...common.progress import progress
from ...text.sources import Source
from ..records.eval_report import CorpusScore, EvalReport, mean_or_none
from ..records.reference_logits import LogitsWriter, StoredReference
from ..scoring.divergence import Compared, Doubles, LiveReference, Reference, diverge, log_softmax, loss_of, mean_error
from ..scoring.scorer import Scorer, open_scorer
from ..scoring.windowing import Windowing
from ..scoring.windows import Windows, cut
from .config import EvalConfig


def evaluate(config: EvalConfig) -> EvalReport:
    """Perplexity of ``config.model``, and its divergence from ``config.against``.

    Raises:
        TsconvertError: a model or the text cannot be read, or the two models' vocabularies differ.
    """
    stored = _stored(config)
    how = stored.how if stored else config.windowing
    model = open_scorer(config.model, config.mode, config.threads, how.context)
    if stored is None:
        how = replace(how, context=min(how.context, model.context))
        data = config.data or (Source(path=str(embedded.text("heldout.txt"))),)
        encode = functools.partial(model.encode, parse_special=how.parses_special)
        windows = cut(encode, model.bos, data, how)
    else:
        windows = stored.windows
    with reserved_name(config.save_logits) if config.save_logits else nullcontext():
        writer = LogitsWriter(config.save_logits, config.top) if config.save_logits else None
        reference: Reference | None = stored
        if stored is None and config.against is not None:
            other = open_scorer(config.against, "auto", config.threads, how.context)
            reference = LiveReference(config.against, other.logits(windows))
        loss_P, compared = _score(model, windows, reference, writer)
        if writer:
            writer.write(windows, how, config.model, model.fingerprint)
    report = _report(config, model, windows, how, loss_P)
    if reference is None:
        return report
    found = asdict(diverge(loss_P, compared))
    names = {"perplexity": "against_perplexity", "ratio": "perplexity_ratio", "ratio_error": "perplexity_ratio_error"}
    kept = stored.top if stored else None
    fields = {names.get(name, name): value for name, value in found.items()}
    return replace(report, against=reference.name, kept_logits=kept, **fields)


def _stored(config: EvalConfig) -> StoredReference | None:
    """The stored predictions that ``config.against`` names, if it names some."""
    if config.against is None or Path(config.against).suffix != ".safetensors":
        return None
    if config.data:
        raise TsconvertError(f"--against {config.against}: the file says on which tokens to compare; leave --data out")
    return StoredReference(Path(config.against))


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


def _report(config: EvalConfig, model: Scorer, windows: Windows, how: Windowing, loss_P: Doubles) -> EvalReport:
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
        corpora=[_corpus(number, model, windows, loss_P) for number in range(len(windows.corpora))],
    )  # fmt: skip


def _corpus(number: int, model: Scorer, windows: Windows, loss_P: Doubles) -> CorpusScore:
    activity, context = model.activity(), windows.rows_NS.shape[1]
    counted_N = [context - 1 - first for first in windows.first_N]
    own_P = loss_P[np.repeat(windows.corpus_N, counted_N) == number]
    return CorpusScore(
        name=windows.corpora[number], tokens=context * list(windows.corpus_N).count(number), counted=len(own_P),
        perplexity=float(np.exp(own_P.mean())), density=mean_or_none(activity.density(number)),
        predicted_density=mean_or_none(activity.predicted_density(number)),
        recall=mean_or_none(activity.recall(number)),
    )  # fmt: skip
