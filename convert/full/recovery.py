"""Full recovery: the whole sparse model is trained on, after local recovery, by transformers' Trainer and accelerate.

`OUT.local` is what local recovery made, `OUT.full` the trainer's folder with its checkpoints; both go when `OUT` is
whole, and `--resume` goes on from either.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import atomic_folder, check_disk, empty, refuse_existing, write_json
from ...common.locks import locked
from ...common.progress import note
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.provenance import PROVENANCE
from ...model.whole_model import dense_model, sparse_model, write_model
from ...text.conversations import chat_rows
from ...text.streams import StreamedRows, streamed_rows
from ...text.training_rows import Packed
from ..card import write_card
from ..config import RelufyConfig
from ..relufy import begin_journal, provenance, read_report, relufy, with_own_text
from ..report import FullResult, RelufyReport
from ..threshold import shift
from .activations import InLoop
from .config import FullRecovery
from .data import full_rows, same_tokenizer
from .stage import Stage, batches, perplexity, rows_a_step
from .teacher_logits import keep_logits

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
    with processes.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        refuse_existing(config.out)
        with _folders(config) as stages:
            config = with_own_text(config)
            report, start = _local(config, stages[0], local)
            teacher = open_checkpoint(config.teacher or config.model)
            check_disk(config.out, _disk_bytes(start))
            found, state, held_NS = _train(config, start, teacher, stages[1], in_loop)
            report = replace(
                report, out=config.out, full=found, perplexity=found.perplexity,
                dense_perplexity=found.dense_perplexity, elapsed_s=time.monotonic() - start_s,
            )  # fmt: skip
            if not processes.rank():
                with processes.alone(), atomic_folder(config.out) as folder:
                    write_model(state, start, folder, config.dtype, config.max_shard_bytes)
                    if config.shift is not None:
                        report = replace(report, shift=shift(folder, held_NS, config.shift, config.device))
                    write_json(folder / PROVENANCE, provenance(config, report))
                    write_card(folder, config, report, start)
                    if finish is not None:
                        finish(folder, held_NS, state)
                for folder in stages:
                    shutil.rmtree(folder, ignore_errors=True)
    return report


@contextmanager
def _folders(config: RelufyConfig) -> Iterator[tuple[Path, Path]]:
    """Of both stages, for this run alone; without ``resume`` what an earlier one left there goes.

    Process 0 opens the second one's journal at once: a run with other settings must not go on from the first stage.
    """
    local, full = (config.out.with_name(config.out.name + suffix) for suffix in (".local", ".full"))
    with ExitStack() as mine:
        if not processes.rank():
            mine.enter_context(locked(full, config.out, folder=True))
            refuse_existing(config.out)  # its writer may have finished meanwhile
            if not config.resume:
                shutil.rmtree(local, ignore_errors=True)
                empty(full)
            begin_journal(full, config, open_checkpoint(config.model))
        processes.barrier()
        yield local, full


def _local(
    config: RelufyConfig, folder: Path, work: Callable[[RelufyConfig], RelufyReport]
) -> tuple[RelufyReport, Checkpoint]:
    """The sparse model to start from."""
    source = open_checkpoint(config.model)
    if source.spec.sparse and config.teacher is None:
        raise TsconvertError(
            f"{config.model}: is {source.spec.activation} already; --teacher DENSE says which model to learn from"
        )
    if source.spec.sparse:
        report = RelufyReport(
            out=config.out, source_fingerprint=source.fingerprint, parameters=source.spec.parameters,
            size_bytes=source.size_bytes,
        )  # fmt: skip
        return report, source
    if folder.exists():
        return read_report(folder), open_checkpoint(str(folder))
    return work(replace(config, recover="local", out=folder, shift=None)), open_checkpoint(str(folder))


def _disk_bytes(start: Checkpoint) -> int:
    """The output, and three of the trainer's checkpoints: weights in float32 and AdamW's two moments."""
    return start.size_bytes + 3 * 12 * start.spec.parameters


def _train(
    config: RelufyConfig, start: Checkpoint, teacher: Checkpoint, folder: Path, in_loop: InLoop | None
) -> tuple[FullResult, Mapping[str, torch.Tensor], torch.Tensor]:
    """What was found, the best model's state, and the rows that judged."""
    how = replace(config.full, target_sparsity=config.full.target_sparsity or config.training.target_sparsity)
    same_tokenizer(start, teacher)
    train, held = _rows(start, config, how)
    disable_progress_bar()
    model = _frozen(sparse_model(start), how)
    if in_loop is not None:
        in_loop.start(model)
    dense = dense_model(teacher, torch.bfloat16 if config.training.autocast else torch.float32).to(config.device)
    dense_perplexity, kept = perplexity(dense, held, config.device), None
    if how.top_logits and how.divergence and isinstance(train, Packed):
        train = train[: max(1, round(how.tokens / config.context))]
        rows = (inputs for inputs, _ in batches(train, 1, config.device))
        kept = keep_logits(dense, rows, train.rows_NS.shape, how.top_logits, folder)
    follows = (how.divergence and kept is None) or how.hidden
    stage = Stage(
        config=config, how=how, folder=folder, train=train, held=held, kept=kept, peak=how.peak(start.spec.width),
        teacher=dense if follows else None, in_loop=in_loop,
    )  # fmt: skip
    found, trainer = stage.run(model)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    found = replace(found, dense_perplexity=dense_perplexity)
    if how.baseline:
        del trainer, model, dense
        found = replace(found, baseline=_baseline(stage, teacher))
    return found, state, torch.from_numpy(held.rows_NS)


def _rows(start: Checkpoint, config: RelufyConfig, how: FullRecovery) -> tuple[Packed | StreamedRows, Packed]:
    """What is trained on, and what judges."""
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


def _baseline(stage: Stage, teacher: Checkpoint) -> float:
    """The perplexity of the dense model after as many steps on the same rows, by cross-entropy alone."""
    note("the dense model on the same tokens, for comparison")
    how = replace(stage.how, cross_entropy=1.0, divergence=0.0, hidden=0.0, target_sparsity=None)
    folder = stage.folder / "baseline"
    dense = dense_model(teacher, torch.float32).requires_grad_(True)
    found, _ = replace(stage, how=how, folder=folder, kept=None, teacher=None, in_loop=None).run(_frozen(dense, how))
    return found.perplexity


def _frozen(model: Any, how: FullRecovery) -> Any:
    """``model`` with its embeddings and output head left as they are, unless they are to be trained."""
    for parameter in () if how.train_embeddings else (model.get_input_embeddings(), model.get_output_embeddings()):
        parameter.requires_grad_(False)
    return model
