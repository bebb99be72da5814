"""Full recovery: the whole sparse model is trained, after local recovery, by transformers' Trainer and accelerate.

`OUT.local` is what local recovery made, `OUT.full` the trainer's folder with its checkpoints; both go when `OUT` is
whole, and `--resume` goes on from either.
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import (
    FIRST_STAGE,
    PARTIAL,
    SECOND_STAGE,
    atomic_folder,
    check_disk,
    empty,
    refuse_existing,
    refuse_unfinished,
)
from ...common.locks import locked
from ...common.progress import note
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.files.journal import unfinished
from ...model.whole_model import dense_model, sparse_model, write_model
from ...text.conversations import chat_rows
from ...text.streams import StreamedRows, streamed_rows
from ...text.training_rows import Packed
from ..card import write_card
from ..config import RelufyConfig
from ..config.full import FullRecovery
from ..learning_rate import FULL_SHARE, learning_rate
from ..masked.model_predictors import ModelPredictors
from ..record import begin_journal, write_provenance
from ..report import FullResult, RelufyReport
from ..threshold import shift
from .attention import attend_in_blocks, keep_largest_outputs
from .data import full_rows, same_tokenizer
from .norms import norm_in_one_type
from .stage import Stage, batches, perplexity, rows_a_step
from .teacher_logits import teacher_logits


@dataclass(frozen=True)
class StageFolders:
    """Where a full recovery works, beside OUT."""

    local: Path
    """The checkpoint that local recovery makes."""
    full: Path
    """The trainer's folder."""
    predictors: Path | None
    """The predictors that local recovery makes, if any."""


def baseline_folder(config: RelufyConfig) -> Path:
    """Where the dense model goes that is trained on the same tokens, for `eval --baseline`."""
    return config.out.with_name(config.out.name + ".baseline")


def _with_work(local: Path, full: Path) -> list[Path]:
    """Which of the stages' folders hold what a run would go on from."""
    partial = local.with_name(local.name + PARTIAL)
    held = {local: local.exists(), partial: unfinished(partial), full: any(full.glob("checkpoint-*"))}
    return [folder for folder, holds in held.items() if holds]


@contextmanager
def stage_folders(config: RelufyConfig) -> Iterator[StageFolders]:
    """The folders of both stages, for this run alone; without ``resume`` it is refused to lose an earlier one's.

    Process 0 opens the second stage's journal at once: a run with other settings must not go on from the first stage.
    When the run succeeds the folders are removed.
    """
    local, full = (config.out.with_name(config.out.name + suffix) for suffix in (FIRST_STAGE, SECOND_STAGE))
    joint = config.predictors
    predictors = None if joint is None else joint.out.with_name(joint.out.name + FIRST_STAGE)
    made = [local, full] if predictors is None else [local, full, predictors]
    with ExitStack() as mine:
        if not processes.rank():
            mine.enter_context(locked(full, config.out, folder=True))
            refuse_existing(config.out)  # its writer may have finished meanwhile
            if config.full.baseline and not config.resume:
                refuse_existing(baseline_folder(config))
            if not config.resume:
                if held := _with_work(local, full):
                    refuse_unfinished(*held)
                for folder in made:
                    if folder != full:
                        shutil.rmtree(folder, ignore_errors=True)
                empty(full)
            begin_journal(full, config, open_checkpoint(config.model))
        processes.barrier()
        yield StageFolders(local, full, predictors)
        if not processes.rank():
            for folder in made:
                shutil.rmtree(folder, ignore_errors=True)


def train_whole(
    config: RelufyConfig, report: RelufyReport, start: Checkpoint, predictors_folder: Path | None, folder: Path,
    start_s: float,
) -> RelufyReport:  # fmt: skip
    """Train ``start`` as a whole and write it to ``config.out``.

    Args:
        report: of local recovery.
        predictors_folder: the predictors of ``start``, to be trained with it; None without any.
        folder: the trainer's.
        start_s: when the run began, on the monotonic clock.

    Raises:
        TsconvertError: bad input, a loss that is no number, or a full disk; the trainer's checkpoints stay.
    """
    teacher = open_checkpoint(config.teacher or config.model)
    # the output, and three of the trainer's checkpoints: weights in float32 and AdamW's two moments
    check_disk(config.out, start.size_bytes + 3 * 12 * start.spec.parameters)
    joint, predictors = config.predictors, None
    if predictors_folder is not None and joint is not None:
        predictors = ModelPredictors(predictors_folder, joint)
    found, state, held_NS = _train(config, start, teacher, folder, predictors, start_s)
    report = replace(
        report, out=config.out, full=found, perplexity=found.perplexity, dense_perplexity=found.dense_perplexity,
        elapsed_s=time.monotonic() - start_s,
    )  # fmt: skip
    if not processes.rank():
        with processes.alone(), atomic_folder(config.out) as partial:
            write_model(state, start, partial, config.dtype, config.max_shard_bytes, found.thresholds)
            if config.shift is not None:
                report = replace(report, shift=shift(partial, held_NS, config.shift, config.device))
            write_provenance(partial, config, report)
            write_card(partial, config, report, start)
            if predictors is not None:
                tokens = min(config.full.tokens, found.tokens)  # fewer where the clock ended it
                written = predictors.write(state, partial, held_NS, config, tokens, start_s)
                report = replace(report, predictors=written)
    return report


def _train(
    config: RelufyConfig, start: Checkpoint, teacher: Checkpoint, folder: Path, predictors: ModelPredictors | None,
    start_s: float,
) -> tuple[FullResult, Mapping[str, torch.Tensor], torch.Tensor]:  # fmt: skip
    """What was found, the best model's state, and the rows that judged."""
    how = replace(config.full, target_sparsity=config.full.target_sparsity or config.training.target_sparsity)
    same_tokenizer(start, teacher)
    train, held = _rows(start, config, how)
    disable_progress_bar()
    model = _sped_up(_frozen(sparse_model(start), how), config.device)
    if how.attention_share is not None:
        keep_largest_outputs(model, start.spec, how.attention_share)
    dense = dense_model(teacher, torch.bfloat16 if config.training.autocast else torch.float32).to(config.device)
    _sped_up(dense, config.device)
    dense_perplexity, logits = perplexity(dense, held, config.device), None
    if how.top_logits and how.divergence and isinstance(train, Packed):
        train = train[: max(1, round(how.tokens / config.context))]
        rows = (inputs for inputs, _ in batches(train, 1, config.device))
        logits = teacher_logits(dense, rows, train.rows_NS.shape, how.top_logits, folder)
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    follows = (how.divergence and logits is None) or how.hidden
    stage = Stage(
        config=config, how=how, folder=folder, train=train, held=held, logits=logits,
        peak=how.learning_rate or learning_rate(FULL_SHARE, trained, start.spec.layers),
        teacher=dense if follows else None, predictors=predictors,
        ends_s=None if config.time_limit_s is None else start_s + config.time_limit_s,
    )  # fmt: skip
    found, trainer = stage.run(model)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    found = replace(found, dense_perplexity=dense_perplexity)
    if how.baseline:
        del trainer, model, dense
        found = replace(found, baseline=_baseline(stage, teacher, baseline_folder(config)))
    return found, state, torch.from_numpy(held.rows_NS)


def _rows(start: Checkpoint, config: RelufyConfig, how: FullRecovery) -> tuple[Packed | StreamedRows, Packed]:
    """The rows to train on, and those that judge."""
    if how.stream:
        if not config.data or how.top_logits:
            raise TsconvertError(
                "--stream needs --data, and nothing is kept of what streams by; give --data and leave --top-logits out"
            )
        return streamed_rows(start, config.data, context=config.context, seed=config.seed)
    multiple = rows_a_step(config, how)
    if how.chat is not None:
        return chat_rows(start, how.chat, context=config.context, seed=config.seed, multiple=multiple)
    return full_rows(start, config, how, multiple)


def _baseline(stage: Stage, teacher: Checkpoint, out: Path) -> float:
    """The perplexity of the dense model, written to ``out``, after as many steps on the same rows by cross-entropy."""
    note("the dense model on the same tokens, for comparison")
    how = replace(stage.how, cross_entropy=1.0, divergence=0.0, hidden=0.0, target_sparsity=None)
    folder = stage.folder / "baseline"
    dense = _frozen(dense_model(teacher, torch.float32).requires_grad_(True), how)
    _sped_up(dense, stage.config.device)
    found, trainer = replace(stage, how=how, folder=folder, logits=None, teacher=None, predictors=None).run(dense)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not processes.rank() and not out.exists():
        with processes.alone(), atomic_folder(out) as partial:
            write_model(state, teacher, partial, None, stage.config.max_shard_bytes)
    return found.perplexity


def _sped_up(model: Any, device: str) -> Any:
    """``model`` with what is faster on ``device``."""
    attend_in_blocks(model, device)
    norm_in_one_type(model, device)
    return model


def _frozen(model: Any, how: FullRecovery) -> Any:
    """``model`` with its embeddings and output head left as they are, unless they are to be trained."""
    for parameter in () if how.train_embeddings else (model.get_input_embeddings(), model.get_output_embeddings()):
        parameter.requires_grad_(False)
    return model
