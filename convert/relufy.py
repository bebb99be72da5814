"""`tsconvert relufy`: a SwiGLU checkpoint becomes a dReLU one, aligned and recovered, written layer by layer."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..common import processes
from ..common.command_line import typed
from ..common.errors import TsconvertError
from ..common.files import PARTIAL, atomic_folder, check_disk, refuse_existing, write_json
from ..common.progress import progress
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.dtypes import from_float32, to_float32
from ..model.journal import JOURNAL, KEPT, Journal
from ..model.provenance import PROVENANCE
from ..model.sparse_checkpoint import sparse_config, write_companions
from ..model.tensor_names import PREDICTOR, Place, hf_name
from ..model.writer import CheckpointWriter, PlannedTensor, plan_like
from ..text.packing import calibration_rows
from ..text.sequences import Sequences
from .along import Along
from .config import RelufyConfig
from .report import LayerResult, RelufyReport, ThresholdShift

FORMAT_VERSION = 1


def relufy(config: RelufyConfig, along: Along | None = None) -> RelufyReport:
    """Convert ``config.model`` and write the sparse checkpoint to ``config.out``.

    Started by torchrun, the processes share the text, and the first one writes.

    Args:
        along: trained along with each layer (`predictors.joint`).

    Raises:
        TsconvertError: bad input; what was already written stays in `OUT.partial` for `--resume`.

    Example:
        >>> relufy(RelufyConfig(model="tiny-mistral", out=Path("sparse"), recover="none"))
    """
    if config.predictors is not None:
        from .masked.full import relufy_fully_with_predictors
        from .masked.local import relufy_with_predictors

        run = relufy_fully_with_predictors if config.recover == "full" else relufy_with_predictors
        return run(config, config.predictors)
    if config.recover == "full" and not config.dry_run:
        from .full.recovery import relufy_fully

        return relufy_fully(config)
    start_s = time.monotonic()
    with processes.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        refuse_existing(config.out)
        if any(each.path == "self" for each in config.data):
            config = with_own_text(config)
        source = open_checkpoint(config.model)
        teacher = _teacher(source, config)
        plan = plan_like([source.info(place) for place in source.places], config.dtype)
        # experts are written one tensor each, whatever layout they came in
        names = [hf_name(source.spec, place) for place in source.places]
        plan = [replace(tensor, name=name) for tensor, name in zip(plan, names, strict=True)]
        size_bytes = sum(tensor.size_bytes for tensor in plan)
        report = RelufyReport(
            out=config.out, source_fingerprint="", parameters=source.spec.parameters, size_bytes=size_bytes
        )
        if config.dry_run:
            from .cost import relufy_cost

            return replace(report, cost=relufy_cost(source.spec, source.size_bytes, size_bytes, config))
        check_disk(config.out, size_bytes)
        with _output(config, plan, source) as (folder, writer, journal):
            found = _convert(source, teacher, folder, writer, journal, config, along)
            elapsed_s = time.monotonic() - start_s
            report = replace(report, source_fingerprint=source.fingerprint, elapsed_s=elapsed_s, **found)
            if writer is not None:
                write_companions(source, sparse_config(source, config.activation, config.dtype), folder)
                writer.flush()
            if config.shift is not None:
                report = replace(report, shift=_shift(config, folder))
            if along is not None:
                along.finish(folder)
            if writer is not None:
                write_json(folder / PROVENANCE, provenance(config, report))
    return report


def with_own_text(config: RelufyConfig) -> RelufyConfig:
    """``config`` with each source called `self` replaced by a file of the teacher's text; made once, beside OUT."""
    from ..text import own_text  # torch and transformers take seconds to load

    data = own_text.with_own_text(
        config.data, config.teacher or config.model, config.out.with_name(config.out.name + ".self.jsonl"),
        tokens=max(config.tokens, config.full.tokens if config.recover == "full" else 0),
        context=config.context, seed=config.seed, device=config.device, bfloat16=bool(config.training.autocast),
    )  # fmt: skip
    return replace(config, data=data)


def _shift(config: RelufyConfig, folder: Path) -> ThresholdShift:
    """The last step, on the sequences that were kept from training."""
    from .local.sweep import JUDGE_SHARE
    from .threshold import shift

    made = Checkpoint(folder)
    rows_NS = calibration_rows(made, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    sequences = Sequences(rows_NS, JUDGE_SHARE)
    return shift(folder, sequences.rows_NS[sequences.held], config.shift or 0.0, config.device)


@contextmanager
def _output(
    config: RelufyConfig, plan: list[PlannedTensor], source: Checkpoint
) -> Iterator[tuple[Path, CheckpointWriter | None, Journal | None]]:
    """The partial folder, its writer and, of a sweep, its journal; only process 0 has the last two.

    The journal is opened first: a folder that was begun with other settings is refused before a byte of it changes.
    """
    if processes.rank():
        yield config.out.with_name(config.out.name + PARTIAL), None, None
        return
    swept = _swept(config)
    with atomic_folder(config.out, resume=config.resume and swept, drop=(JOURNAL, f"*{KEPT}")) as folder:
        journal = begin_journal(folder, config, source) if swept else None
        with CheckpointWriter(folder, plan, config.max_shard_bytes) as writer:
            yield folder, writer, journal


def _swept(config: RelufyConfig) -> bool:
    """Whether text goes through the layers; otherwise weights are copied as they are, and nothing is resumed."""
    return config.recover != "none" or config.align


def begin_journal(folder: Path, config: RelufyConfig, source: Checkpoint) -> Journal:
    """The journal in ``folder`` of a run with these settings.

    Raises:
        TsconvertError: one with others was begun there.
    """
    asked = {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out", "predictors")}
    return Journal(folder / JOURNAL, {"asked": asked, "source": source.fingerprint})


def _convert(
    source: Checkpoint,
    teacher: Checkpoint,
    folder: Path,
    writer: CheckpointWriter | None,
    journal: Journal | None,
    config: RelufyConfig,
    along: Along | None,
) -> dict[str, Any]:
    """Write every tensor; what a sweep found, if there was one."""
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
    found = RecoverySweep(source, teacher, sequences, config, writer, folder, journal, along).run()
    return vars(found)


def _copy(source: Checkpoint, writer: CheckpointWriter | None, config: RelufyConfig, places: list[Place]) -> None:
    """Tensors that do not change: byte for byte, unless another dtype is asked for."""
    if writer is None:
        return
    with progress("tensors", len(places)) as step:
        for place in places:
            info = source.info(place)
            if config.dtype and config.dtype != info.dtype:
                raw = from_float32(to_float32(source.raw(place), info.dtype), config.dtype)
                writer.write(hf_name(source.spec, place), raw)
            else:
                writer.copy(hf_name(source.spec, place), info)
            step("")


def _teacher(source: Checkpoint, config: RelufyConfig) -> Checkpoint:
    """The dense model to learn from.

    Raises:
        TsconvertError: the source is sparse already, or the teacher is no dense model of the same shape.
    """
    if config.teacher is None:
        if source.spec.sparse:
            raise TsconvertError(
                f"{config.model}: is {source.spec.activation} already, nothing is left to do;"
                " --teacher DENSE recovers it further"
            )
        return source
    teacher = open_checkpoint(config.teacher)
    _match(source, teacher, config)
    return teacher


def _match(source: Checkpoint, teacher: Checkpoint, config: RelufyConfig) -> None:
    ours, theirs = source.spec, teacher.spec
    if theirs.sparse:
        raise TsconvertError(f"{config.teacher}: is {theirs.activation}; give the dense SwiGLU model that it came from")
    if (ours.layers, ours.width, ours.vocab) != (theirs.layers, theirs.width, theirs.vocab):
        raise TsconvertError(
            f"{config.teacher}: {theirs.layers} layers of width {theirs.width}, where {config.model} has"
            f" {ours.layers} of {ours.width}; give a teacher of the same shape"
        )


def read_report(folder: Path) -> RelufyReport:
    """What `provenance` kept of a run without a second stage, in ``folder``.

    Raises:
        TsconvertError: its file is missing or damaged.
    """
    try:
        found = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["report"]
        energies, layers = found["energy_kept"], tuple(LayerResult(**fields) for fields in found["layers"])
        report = RelufyReport(**found | {"out": folder, "layers": layers, "shift": None, "full": None})
    except (OSError, ValueError, KeyError, TypeError):
        raise TsconvertError(f"{folder / PROVENANCE}: missing or damaged; start again without --resume") from None
    return replace(report, energy_kept=(energies[0], energies[1]) if energies else None)


def provenance(config: RelufyConfig, report: RelufyReport) -> dict[str, Any]:
    """What is kept beside the weights: the settings and the report."""
    settings = asdict(config) | {"out": str(config.out)}
    return {
        "format": "tsconvert relufy",
        "format_version": FORMAT_VERSION,
        "command": typed(),
        "settings": settings,
        "report": report.to_json(),
    }
