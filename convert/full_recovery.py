"""Full recovery: the whole sparse model is trained on, after local recovery, by transformers' Trainer and accelerate.

`OUT.local` is what local recovery made, `OUT.full` the trainer's folder with its checkpoints; both go when `OUT` is
whole, and `--resume` goes on from either.
"""

import errno
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from . import distributed
from .checkpoint import Checkpoint, open_checkpoint
from .errors import TsconvertError
from .full_callbacks import Progress
from .full_config import Evaluation, FullFound, FullRecovery
from .full_data import Packed, Rows, full_rows, same_tokenizer
from .full_loss import IGNORED, distillation
from .full_model import dense_model, sparse_model, write_model
from .full_trainer import RecoveryTrainer, forwarded, shifted, whole
from .full_watch import InLoop
from .journal import JOURNAL, Journal
from .progress import note
from .relufy import PROVENANCE, RelufyConfig, RelufyReport, provenance, relufy
from .teacher_logits import keep_logits
from .writer import atomic_folder, check_disk, refuse_existing, write_json

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left", "File too large", "quota exceeded", "PytorchStreamWriter failed", "unexpected pos")
Finish = Callable[[Path, torch.Tensor, Mapping[str, torch.Tensor]], None]


def relufy_fully(
    config: RelufyConfig,
    *,
    local: Callable[[RelufyConfig], RelufyReport] = relufy,
    in_loop: InLoop | None = None,
    finish: Finish | None = None,
) -> RelufyReport:
    """Recover ``config.model`` locally, unless it is sparse already, then train it as a whole.

    Args:
        local: does the first stage.
        in_loop: trained along in the second stage.
        finish: called in process 0 with the finished, still partial folder, the rows that judge and the model's state.

    Raises:
        TsconvertError: bad input, a loss that is no number, or a full disk; the trainer's checkpoints stay.
    """
    start_s = time.monotonic()
    with distributed.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        refuse_existing(config.out)
        stages = _folders(config)
        report, start = _local(config, stages[0], local)
        teacher = open_checkpoint(config.teacher or config.model)
        check_disk(config.out, _disk_bytes(start))
        found, trainer, held_NS = _train(config, start, teacher, stages[1], in_loop)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        report = replace(
            report, out=config.out, full=found, perplexity=found.perplexity, dense_perplexity=found.dense_perplexity,
            elapsed_s=time.monotonic() - start_s,
        )  # fmt: skip
        if not distributed.rank():
            with atomic_folder(config.out) as folder:
                write_model(state, start, folder, config.dtype, config.max_shard_bytes)
                write_json(folder / PROVENANCE, provenance(config, report))
                if finish is not None:
                    finish(folder, held_NS, state)
            for folder in stages:
                shutil.rmtree(folder, ignore_errors=True)
    return report


def _folders(config: RelufyConfig) -> tuple[Path, Path]:
    """Of both stages; without ``resume`` what an earlier run left there goes."""
    local, full = (config.out.with_name(config.out.name + suffix) for suffix in (".local", ".full"))
    if not config.resume and not distributed.rank():
        for folder in (local, full):
            shutil.rmtree(folder, ignore_errors=True)
    distributed.barrier()
    return local, full


def _local(
    config: RelufyConfig, folder: Path, work: Callable[[RelufyConfig], RelufyReport]
) -> tuple[RelufyReport, Checkpoint]:
    """The sparse model to start from."""
    source = open_checkpoint(config.model)
    if source.spec.sparse:
        if config.teacher is None:
            raise TsconvertError(
                f"{config.model}: is {source.spec.activation} already; --teacher DENSE says which model to learn from"
            )
        size = source.size_bytes
        return RelufyReport(
            out=config.out, source_fingerprint=source.fingerprint, parameters=source.spec.parameters, size_bytes=size
        ), source
    if folder.exists():
        size = source.size_bytes
        report = RelufyReport(
            out=config.out, source_fingerprint=source.fingerprint, parameters=source.spec.parameters, size_bytes=size
        )
    else:
        report = work(replace(config, recover="local", out=folder))
    return report, open_checkpoint(str(folder))


def _disk_bytes(start: Checkpoint) -> int:
    """The output, and three of the trainer's checkpoints: weights in float32 and AdamW's two moments."""
    return start.size_bytes + 3 * 12 * start.spec.parameters


def _train(
    config: RelufyConfig, start: Checkpoint, teacher: Checkpoint, folder: Path, in_loop: InLoop | None
) -> tuple[FullFound, RecoveryTrainer, torch.Tensor]:
    start_s = time.monotonic()
    how = replace(config.full, target_sparsity=config.full.target_sparsity or config.training.target_sparsity)
    arguments = _arguments(config, how, folder)
    same_tokenizer(start, teacher)
    train, held = full_rows(start, config, how, _rows_a_step(arguments))
    if not distributed.rank():
        folder.mkdir(parents=True, exist_ok=True)
        asked = {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out")}
        Journal(folder / JOURNAL, {"asked": asked, "source": start.fingerprint})
    disable_progress_bar()
    model = sparse_model(start)
    for parameter in () if how.train_embeddings else (model.get_input_embeddings(), model.get_output_embeddings()):
        parameter.requires_grad_(False)
    if in_loop is not None:
        in_loop.start(model)
    dense = dense_model(teacher, torch.bfloat16 if config.training.autocast else torch.float32).to(config.device)
    dense_perplexity = _perplexity(dense, held, config)
    kept = None
    if how.top_logits and how.divergence:
        train = train[: max(1, round(how.tokens / config.context))]
        kept = keep_logits(dense, _batches(train, 1, config), train.rows_NS.shape, how.top_logits, folder)
    follows = (how.divergence and kept is None) or how.hidden
    trainer = RecoveryTrainer(
        model=model, args=arguments, train_dataset=Rows(train, kept), eval_dataset=Rows(held), how=how,
        teacher=dense if follows else None, peak=how.peak(start.spec.width), in_loop=in_loop,
        callbacks=[EarlyStoppingCallback(how.patience)] if how.patience else None,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(trainer))
    _run(trainer, folder, config.resume)
    judged = trainer.evaluate()
    looks = tuple(_evaluation(entry) for entry in trainer.state.log_history if "eval_loss" in entry)
    found = FullFound(
        steps=trainer.state.global_step, tokens=trainer.state.global_step * how.batch_tokens,
        best_step=trainer.state.best_global_step or trainer.state.global_step, dense_perplexity=dense_perplexity,
        perplexity=judged["eval_perplexity"], density=trainer.layer_density, evaluations=looks,
        losses=tuple((entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry),
        elapsed_s=time.monotonic() - start_s,
    )  # fmt: skip
    return found, trainer, torch.from_numpy(held.rows_NS)


def _run(trainer: RecoveryTrainer, folder: Path, resume: bool) -> None:
    last = max(filter(whole, folder.glob("checkpoint-*")), key=_step, default=None) if resume else None
    if last is not None:
        note(f"going on from step {_step(last)}")
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except Exception as error:
        if getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS):
            raise TsconvertError(f"{folder}: the disk is full; {trainer.kept()}: make room and --resume") from error
        raise


def _rows_a_step(arguments: TrainingArguments) -> int:
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _arguments(config: RelufyConfig, how: FullRecovery, folder: Path) -> TrainingArguments:
    rows = max(1, how.micro_tokens // config.context)
    steps = max(1, how.batch_tokens // (rows * config.context * distributed.world()))
    every = max(1, how.steps // how.evaluations)
    more: dict[str, Any] = {"activation_checkpointing_kwargs": {"use_reentrant": False}} if how.checkpointing else {}
    return TrainingArguments(
        output_dir=str(folder), max_steps=max(1, round(how.steps / every)) * every, per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows, gradient_accumulation_steps=steps, lr_scheduler_type="cosine",
        warmup_steps=max(1, how.steps // 20), max_grad_norm=1.0, logging_steps=min(10, every), eval_strategy="steps",
        eval_steps=every, save_strategy="steps", save_steps=every, save_total_limit=2, load_best_model_at_end=True,
        metric_for_best_model="objective", greater_is_better=False, seed=config.seed, data_seed=config.seed,
        use_cpu=torch.device(config.device).type == "cpu", bf16=bool(config.training.autocast),
        activation_checkpointing=how.checkpointing, report_to=list(how.report_to), disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=False,
        logging_nan_inf_filter=False, **more,
    )  # fmt: skip


def _batches(packed: Packed, rows: int, config: RelufyConfig) -> Iterator[dict[str, torch.Tensor]]:
    """What a model is given of some sequences, so many at a time."""
    for batch in DataLoader(Rows(packed), batch_size=rows):
        yield forwarded({name: part.to(config.device) for name, part in batch.items()})


@torch.no_grad()
def _perplexity(model: Any, held: Packed, config: RelufyConfig) -> float:
    total, count = 0.0, 0
    batches = zip(_batches(held, 4, config), DataLoader(Rows(held), batch_size=4), strict=True)
    for inputs, batch in batches:
        label_T = shifted(batch["labels"]).flatten().to(config.device)
        known = int((label_T != IGNORED).sum())
        logits_NSV = model(**inputs, use_cache=False).logits
        found = distillation(logits_NSV.flatten(0, 1), None, label_T, 1.0, 0.0)
        total, count = total + float(found.cross_entropy) * known, count + known
    return math.exp(total / count)


def _evaluation(entry: dict[str, float]) -> Evaluation:
    predicted = entry.get("eval_predicted_perplexity")
    return Evaluation(
        step=int(entry["step"]), perplexity=entry["eval_perplexity"], density=entry["eval_density"],
        predicted_perplexity=predicted,
    )  # fmt: skip
