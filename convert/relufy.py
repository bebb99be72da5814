"""`tsconvert relufy`: a SwiGLU checkpoint becomes a dReLU one, aligned and recovered, written layer by layer.

`relufy` decides here what runs: layers are only copied, or aligned, or recovered one by one, alone or with predictors;
then, for full recovery, the model is trained as a whole. Down from here, a file a step:

    relufy.py > local/sweep.py > local/layer_recovery.py > masked/layer_predictors.py
    relufy.py > full/recovery.py > full/stage.py > full/trainer.py > full/activations.py > masked/model_predictors.py
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common import processes
from ..common.errors import TsconvertError
from ..common.files import PARTIAL, atomic_folder, check_disk, refuse_existing
from ..common.progress import note, progress
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.files.dtypes import from_float32, to_float32
from ..model.files.journal import JOURNAL, KEPT, Journal, unfinished
from ..model.files.writer import CheckpointWriter, PlannedTensor
from ..model.sparse_checkpoint import Thresholds, plan_of, sparse_config, write_companions
from ..model.spec import THRESHOLDED, with_own_gate
from ..model.tensor_names import PREDICTOR, Place, hf_name
from ..predictors.cost import check_rank
from ..text.packing import calibration_rows
from ..text.sequences import Sequences
from .config import RelufyConfig
from .record import begin_journal, read_report, write_provenance
from .report import RelufyReport, ThresholdShift

if TYPE_CHECKING:
    from .masked.layer_predictors import JointPredictors

__all__ = ["RelufyConfig", "relufy"]


def relufy(config: RelufyConfig) -> RelufyReport:
    """Convert ``config.model`` and write the sparse checkpoint to ``config.out``.

    Started by torchrun, the processes share the text, and the first one writes.

    Raises:
        TsconvertError: bad input, a loss that is no number, or a full disk; what was already written stays in
            `OUT.partial`, or `OUT.local` and `OUT.full`, for ``resume``.

    Example:
        >>> relufy(RelufyConfig(model="tiny-mistral", out=Path("sparse"), recover="none"))
    """
    with processes.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        refuse_existing(config.out)
        if config.predictors is not None:
            _check_predictors(config)
        if config.dry_run:
            return _estimated(config)
        return _recover_fully(config) if config.recover == "full" else _recover_layers(config)


def _check_predictors(config: RelufyConfig) -> None:
    """Raise if predictors cannot be trained in this run."""
    assert config.predictors is not None
    if not config.resume:
        refuse_existing(config.predictors.out)
    if config.predictors.rank is not None:
        check_rank(open_checkpoint(config.model).spec, config.predictors.rank)
    if config.recover == "none":
        raise TsconvertError(
            "--predictors with --recover none: they are trained along with local or full recovery; choose one of"
            " these, or train them afterwards with `tsconvert predictors`"
        )
    if config.recover == "full" and not config.dry_run:
        start = config.predictors.start
        if open_checkpoint(config.model).spec.sparse:
            if start is None:
                raise TsconvertError(f"{config.model}: is sparse already; give its predictors with --from-predictors")
        elif start is not None:
            raise TsconvertError(
                f"{config.model}: is dense, and its predictors are made along the way; leave --from-predictors out"
            )


def _estimated(config: RelufyConfig) -> RelufyReport:
    """What the run would take."""
    from .cost import relufy_cost

    source, _, plan = _planned(config)
    size_bytes = sum(tensor.size_bytes for tensor in plan)
    return RelufyReport(
        out=config.out, source_fingerprint="", parameters=source.spec.parameters, size_bytes=size_bytes,
        cost=relufy_cost(source.spec, source.size_bytes, size_bytes, config),
    )  # fmt: skip


def _planned(config: RelufyConfig) -> tuple[Checkpoint, Checkpoint, list[PlannedTensor]]:
    """The model, its teacher, and the tensors to write."""
    source = open_checkpoint(config.model)
    if config.activation == "tswiglu":
        _check_thresholds(source)
    elif source.spec.activation in THRESHOLDED:
        raise TsconvertError(
            f"{source.folder}: is {source.spec.activation} already; give --activation tswiglu, or convert the dense"
            f" model that it came from to {config.activation}"
        )
    elif source.spec.activation == "geglu":
        note(
            f"{config.model}: GeGLU becomes {config.activation}, and training has to make up for it; --activation"
            " tswiglu, which keeps it, is nearer to the dense model after the same time"
        )
    return source, _teacher(source, config), plan_of(source, config.dtype, up_scaled=config.up_scaled)


def _check_thresholds(source: Checkpoint) -> None:
    """Raise if the model is sparse in another way, or if scales of ups would leave out what it has."""
    spec = source.spec
    if spec.activation in ("drelu", "reglu"):
        raise TsconvertError(
            f"{source.folder}: --activation tswiglu keeps SwiGLU and this model is {spec.activation} already; convert"
            " the dense model that it came from"
        )
    if any(role.startswith("ffn") for role in spec.biases):
        raise TsconvertError(
            f"{source.folder}: --activation tswiglu takes an FFN without biases and this model has some; choose drelu"
            " or reglu"
        )


def _recover_fully(config: RelufyConfig) -> RelufyReport:
    """Recover layer by layer, then train the whole model."""
    from .full.recovery import stage_folders, train_whole

    start_s = time.monotonic()
    with stage_folders(config) as folders:
        config = _with_own_text(config)
        report, start, predictors = _first_stage(config, folders.local, folders.predictors)
        return train_whole(config, report, start, predictors, folders.full, start_s)


def _first_stage(
    config: RelufyConfig, folder: Path, predictors: Path | None
) -> tuple[RelufyReport, Checkpoint, Path | None]:
    """What local recovery, done now or by an earlier run, reports; the model and the predictors that it made.

    A model that is sparse already is taken as it is; where `tswiglu` is asked for and is there, its thresholds are set
    anew.
    """
    source, joint = open_checkpoint(config.model), config.predictors
    if source.spec.sparse:
        if config.teacher is None:
            raise TsconvertError(
                f"{config.model}: is {source.spec.activation} already; --teacher DENSE says which model to learn from"
            )
        predictors, joint = None if joint is None else joint.start, None
        if config.activation != "tswiglu":
            report = RelufyReport(
                out=config.out, source_fingerprint=source.fingerprint, parameters=source.spec.parameters,
                size_bytes=source.size_bytes,
            )  # fmt: skip
            return report, source, predictors
    if folder.exists():
        report = read_report(folder)
    else:
        joint = None if joint is None or predictors is None else replace(joint, out=predictors)
        report = _recover_layers(replace(config.layer_stage, out=folder, predictors=joint))
    return replace(report, predictors=None), open_checkpoint(str(folder)), predictors


def _recover_layers(config: RelufyConfig) -> RelufyReport:
    """Copy, align or recover the layers one by one."""
    start_s = time.monotonic()
    config = _with_own_text(config)
    source, teacher, plan = _planned(config)
    report = RelufyReport(
        out=config.out, source_fingerprint="", parameters=source.spec.parameters,
        size_bytes=sum(tensor.size_bytes for tensor in plan),
    )  # fmt: skip
    check_disk(config.out, report.size_bytes)
    joint, found = None, None
    if config.predictors is not None:
        from .masked.layer_predictors import JointPredictors

        joint = JointPredictors(source.spec, config.predictors, config)
    with _output(config, plan, source) as (folder, writer, journal):
        swept = _convert(source, teacher, folder, writer, journal, config, joint)
        elapsed_s = time.monotonic() - start_s
        report = replace(report, source_fingerprint=source.fingerprint, elapsed_s=elapsed_s, **swept)
        if writer is not None:
            thresholds = Thresholds.of(report.layers) if report.layers else None
            activation = with_own_gate(config.activation, source.spec.activation)
            made = sparse_config(source, activation, config.dtype, thresholds, up_scaled=config.up_scaled)
            write_companions(source, made, folder)
            writer.flush()
        if config.shift is not None:
            report = replace(report, shift=_shift(config, folder))
        if joint is not None:
            found = joint.write(folder)
        if writer is not None:
            write_provenance(folder, config, report)
    return replace(report, predictors=found)


def _with_own_text(config: RelufyConfig) -> RelufyConfig:
    """``config`` with each source called `self` replaced by a file of the teacher's text; made once, beside OUT."""
    if all(source.path != "self" for source in config.data):
        return config
    from ..text import own_text  # torch and transformers take seconds to load

    data = own_text.with_own_text(
        config.data, config.teacher or config.model, config.out.with_name(config.out.name + ".self.jsonl"),
        tokens=max(config.tokens, config.full.tokens if config.recover == "full" else 0),
        context=config.context, seed=config.seed, device=config.device, bfloat16=bool(config.training.autocast),
        limit_s=config.time_limit_s and config.time_limit_s / 2,  # training on it takes about as long
    )  # fmt: skip
    return replace(config, data=data)


def _shift(config: RelufyConfig, folder: Path) -> ThresholdShift:
    """Set thresholds as the last step, on the sequences that were kept from training."""
    from .local.sweep import JUDGE_SHARE
    from .threshold import shift

    rows_NS = calibration_rows(
        Checkpoint(folder), config.data, tokens=config.tokens, context=config.context, seed=config.seed
    )
    sequences = Sequences(rows_NS, JUDGE_SHARE)
    return shift(folder, sequences.rows_NS[sequences.held], config.shift or 0.0, config.device)


@contextmanager
def _output(
    config: RelufyConfig, plan: list[PlannedTensor], source: Checkpoint
) -> Iterator[tuple[Path, CheckpointWriter | None, Journal | None]]:
    """The partial folder, its writer and, of a sweep, its journal; only process 0 has the last two.

    The journal is opened first: a folder that was begun with other settings is refused before a byte of it changes. No
    process goes on before OUT is whole: all of them may read it next.
    """
    if processes.rank():
        yield config.out.with_name(config.out.name + PARTIAL), None, None
        processes.barrier()
        return
    swept = _swept(config)
    resume, drop = config.resume and swept, (JOURNAL, f"*{KEPT}")
    with atomic_folder(config.out, resume=resume, unfinished=unfinished, drop=drop) as folder:
        journal = begin_journal(folder, config, source) if swept else None
        with CheckpointWriter(folder, plan, config.max_shard_bytes) as writer:
            yield folder, writer, journal
    processes.barrier()


def _swept(config: RelufyConfig) -> bool:
    """Whether text goes through the layers; otherwise weights are copied as they are, and nothing is resumed."""
    return config.recover != "none" or config.align or config.activation == "tswiglu"


def _convert(
    source: Checkpoint, teacher: Checkpoint, folder: Path, writer: CheckpointWriter | None, journal: Journal | None,
    config: RelufyConfig, joint: "JointPredictors | None",
) -> dict[str, Any]:  # fmt: skip
    """Write every tensor; returns what the sweep found, if there was one, as fields of RelufyReport."""
    if not _swept(config):
        with ThreadPoolExecutor(1) as pool:  # the fingerprint reads what the copy reads
            fingerprint = pool.submit(lambda: source.fingerprint)
            _copy(source, writer, config, source.places)
            fingerprint.result()
        source.require_finite()
        return {}
    from .local.sweep import JUDGE_SHARE, RecoverySweep  # transformers takes seconds to load; a copy needs none

    rows_NS = calibration_rows(source, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    sequences = Sequences(rows_NS, JUDGE_SHARE)
    outside = [place for place in source.places if place.layer is None or place.role in PREDICTOR]
    _copy(source, writer, config, outside)
    return vars(RecoverySweep(source, teacher, sequences, config, writer, folder, journal, joint).run())


def _copy(source: Checkpoint, writer: CheckpointWriter | None, config: RelufyConfig, places: list[Place]) -> None:
    """Write tensors that do not change: byte for byte, unless another dtype is asked for."""
    if writer is None:
        return
    with progress("tensors", len(places)) as step:
        for place in places:
            info = source.info(place)
            name, dtype = hf_name(source.spec, place), config.dtype or info.dtype
            if dtype == info.dtype and info.plain:
                writer.copy(name, info)
            else:
                pieces = (to_float32(piece, info.dtype) for piece in source.pieces(place))
                writer.write_pieces(name, (from_float32(piece, dtype) for piece in pieces))
            step("")


def _teacher(source: Checkpoint, config: RelufyConfig) -> Checkpoint:
    """The dense model to learn from; the model itself where only its thresholds are set anew.

    Raises:
        TsconvertError: the source is sparse already, or the teacher is no dense model of the same shape.
    """
    ours = source.spec
    if config.teacher is None:
        same = ours.activation in THRESHOLDED and config.activation == "tswiglu"
        anew = config.recover == "none" and same
        if ours.sparse and not anew:
            raise TsconvertError(
                f"{config.model}: is {ours.activation} already, nothing is left to do;"
                " --teacher DENSE recovers it further"
            )
        return source
    teacher = open_checkpoint(config.teacher)
    theirs = teacher.spec
    if theirs.sparse:
        raise TsconvertError(f"{config.teacher}: is {theirs.activation}; give the dense SwiGLU model that it came from")
    if (ours.layers, ours.width, ours.vocab) != (theirs.layers, theirs.width, theirs.vocab):
        raise TsconvertError(
            f"{config.teacher}: {theirs.layers} layers of width {theirs.width}, where {config.model} has"
            f" {ours.layers} of {ours.width}; give a teacher of the same shape"
        )
    return teacher
