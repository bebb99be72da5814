"""One training of a whole model by transformers' Trainer: its settings, its rows, its end, and what can stop it."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from ...common import processes
from ...common.errors import TsconvertError
from ...common.machine.system_errors import no_room
from ...common.progress import note
from ...text.streams import StreamedRows
from ...text.training_rows import IGNORED, Packed
from ..config import RelufyConfig
from ..config.full import FullRecovery
from ..masked.model_predictors import ModelPredictors
from ..report import Evaluation, FullResult
from .activations import ActivationMonitor
from .callbacks import Progress, TimeLimit
from .data import Rows
from .loss import distillation
from .teacher_logits import TeacherLogits
from .trainer import RecoveryTrainer, forwarded, shifted, whole

_WARMUP = 50  # steps at most in which the learning rate goes up; the weights are trained ones, and few steps do


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What is trained, on what, towards what."""

    config: RelufyConfig
    how: FullRecovery
    folder: Path
    """The folder of the trainer and its checkpoints."""
    train: Packed | StreamedRows
    held: Packed
    logits: TeacherLogits | None = None
    peak: float = 0.0
    """Learning rate."""
    teacher: Any = None
    predictors: ModelPredictors | None = None
    ends_s: float | None = None
    """When it is to be over, on the monotonic clock; None: when all tokens are trained on."""

    def run(self, model: Any) -> tuple[FullResult, RecoveryTrainer]:
        """Train ``model``; the best checkpoint is loaded in the end.

        Raises:
            TsconvertError: a loss that is no number, or a full disk.
        """
        start_s = time.monotonic()
        monitor = ActivationMonitor(model, self.predictors)
        trainer = RecoveryTrainer(
            model=model, args=arguments(self.config, self.how, self.folder), how=self.how, teacher=self.teacher,
            silenced_by=self.config.training.silenced_by, up_passes=self.config.training.ups,
            train_dataset=self._rows(), eval_dataset=Rows(self.held),
            peak=self.peak, monitor=monitor,
            callbacks=[EarlyStoppingCallback(self.how.patience)] if self.how.patience else None,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        progress = Progress(trainer)
        trainer.add_callback(progress)
        if self.ends_s is not None:
            trainer.add_callback(TimeLimit(trainer, self.ends_s))
        self._train(trainer)
        judged = trainer.evaluate()
        history = trainer.state.log_history
        found = FullResult(
            steps=trainer.state.global_step, tokens=trainer.state.global_step * self.how.batch_tokens,
            best_step=trainer.state.best_global_step or trainer.state.global_step,
            perplexity=judged["eval_perplexity"], density=trainer.layer_density,
            thresholds=monitor.thresholds, tokens_per_s=progress.tokens_per_s,
            evaluations=tuple(_evaluation(entry) for entry in history if "eval_loss" in entry),
            losses=tuple((entry["step"], entry["loss"]) for entry in history if "loss" in entry),
            elapsed_s=time.monotonic() - start_s,
        )  # fmt: skip
        return found, trainer

    def _rows(self) -> Dataset[dict[str, torch.Tensor]]:
        return self.train if isinstance(self.train, StreamedRows) else Rows(self.train, self.logits)

    def _train(self, trainer: RecoveryTrainer) -> None:
        folder = self.folder
        checkpoints = filter(whole, folder.glob("checkpoint-*")) if self.config.resume else iter(())
        last = max(checkpoints, key=_step, default=None)
        if last is not None:
            note(f"going on from step {_step(last)}")
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except Exception as error:
            if no_room(error):
                raise TsconvertError(f"{folder}: the disk is full; {trainer.kept()}: make room and --resume") from error
            raise


def arguments(config: RelufyConfig, how: FullRecovery, folder: Path) -> TrainingArguments:
    """transformers' settings for ``how``."""
    rows = max(1, how.micro_tokens // config.context)
    steps = max(1, how.batch_tokens // (rows * config.context * processes.world()))
    every = max(1, how.steps // how.evaluations)
    return TrainingArguments(
        output_dir=str(folder), max_steps=max(1, round(how.steps / every)) * every, per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows, gradient_accumulation_steps=steps, lr_scheduler_type="cosine",
        warmup_steps=max(1, min(_WARMUP, how.steps // 20)), max_grad_norm=1.0,
        logging_steps=max(1, min(10, every // 5)),
        eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="objective", greater_is_better=False, seed=config.seed, data_seed=config.seed,
        use_cpu=torch.device(config.device).type == "cpu", bf16=bool(config.training.autocast),
        report_to=list(how.report_to), disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
        logging_nan_inf_filter=False, **_checkpointing(how),
    )  # fmt: skip


def _checkpointing(how: FullRecovery) -> dict[str, Any]:
    """transformers' settings for computing activations again; they had another name in its first 5.x releases."""
    names = [field.name for field in fields(TrainingArguments)]
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if how.checkpointing else {}


def rows_a_step(config: RelufyConfig, how: FullRecovery) -> int:
    """Sequences that all processes train on in one step."""
    rows = max(1, how.micro_tokens // config.context)
    return rows * max(1, how.batch_tokens // (rows * config.context * processes.world())) * processes.world()


def batches(packed: Packed, rows: int, device: str) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """What a model is given of some sequences, so many at a time, and what is to follow each token."""
    for batch in DataLoader(Rows(packed), batch_size=rows):
        here = {name: part.to(device) for name, part in batch.items()}
        yield forwarded(here), shifted(here["labels"]).flatten()


@torch.no_grad()
def perplexity(model: Any, held: Packed, device: str) -> float:
    """The perplexity of ``model`` on some sequences."""
    total, count = 0.0, 0
    for inputs, label_T in batches(held, 4, device):
        known = int((label_T != IGNORED).sum())
        logits_NSV = model(**inputs, use_cache=False).logits
        found = distillation(logits_NSV.flatten(0, 1), None, label_T, 1.0, 0.0)
        total, count = total + float(found.cross_entropy) * known, count + known
    return math.exp(total / max(1, count))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _evaluation(entry: dict[str, float]) -> Evaluation:
    return Evaluation(
        step=int(entry["step"]), perplexity=entry["eval_perplexity"], density=entry["eval_density"],
        predicted_perplexity=entry.get("eval_predicted_perplexity"),
    )  # fmt: skip
