"""export-gguf: a checkpoint becomes a GGUF file, tensor by tensor, never half of one under its final name."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError
from ..common.files import atomic_file, refuse_existing
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..model.spec import ModelSpec
from .config import ExportConfig
from .gguf.model_card import card_path, model_card
from .gguf.model_info import read_info
from .gguf.placed_file import LARGE_BYTES
from .gguf.shards import GgufPlan, bytes_by_type, sharded, write_files
from .gguf.writer import GGUF_MAGIC, Value
from .imatrix.file import ImportanceMatrix, load_imatrix, with_importance
from .targets import llama_cpp, neuron_order, powerinfer, predictor_file, sparse
from .targets.plan import Job, Plan, usual_target
from .targets.predictor_source import PredictorSource, find_predictors
from .types import mixes
from .types.encode import prepare
from .types.type_choice import TypeChoice
from .vocabulary.reader import read_vocabulary

_PLANS: dict[str, Callable[[Job], Plan]] = {
    "llama.cpp": llama_cpp.plan,
    "powerinfer": powerinfer.plan,
    "sparse": sparse.plan,
}


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written."""

    out: Path
    """The file, or the first of its shards."""
    target: str
    architecture: str
    size_bytes: int
    tensors: dict[str, str]
    """Type of each tensor, by name."""
    types: dict[str, int]
    """Bytes of all tensors of a type."""
    predictors: int
    """FFNs that have one in the file."""
    files: list[str] = field(default_factory=list)
    """All that belong to it, shards and companions."""
    notes: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """All fields, as JSON has them."""
        return {**vars(self), "out": str(self.out)}

    def __str__(self) -> str:
        verb = "would write" if self.dry_run else "wrote"
        head = (
            f"{verb} {self.out}: {self.size_bytes / 1e6:,.1f} MB for {self.target} (architecture {self.architecture})"
        )
        counts = {name: list(self.tensors.values()).count(name) for name in self.types}
        lines = [f"  {name:<6} {counts[name]:>5} tensors {size / 1e6:>12,.1f} MB" for name, size in self.types.items()]
        lines.append(f"  predictors for {self.predictors} FFNs" if self.predictors else "  no predictors")
        return "\n".join([head, *lines, *(f"note: {note}" for note in self.notes)])


def export_gguf(config: ExportConfig) -> ExportReport:
    """Write the GGUF file that ``config`` asks for.

    Args:
        config: the model, the file, types and target.

    Returns:
        What the file holds, or would hold with ``dry_run``.

    Raises:
        TsconvertError: the output exists, the model or its tokenizer is incomplete, the target's engine could not
            compute it, predictors belong to another model, or a weight is NaN or infinite. No file is left then.

    Example:
        >>> export_gguf(ExportConfig(model="tiny-mistral", out=Path("tiny.gguf"), type_name="Q8_0"))
    """
    start_s = time.monotonic()
    refuse_existing(config.out)
    refuse_existing(card_path(config.out))
    plan, predictors = _plan(config)
    for companion in plan.companions:
        refuse_existing(config.out.with_name(config.out.name + companion.suffix))
    files = sharded(config.out, plan.metadata, plan.tensors, magic=plan.magic, max_bytes=config.split_max_bytes)
    if not config.dry_run:
        beside = [
            GgufPlan(
                path=config.out.with_name(config.out.name + extra.suffix), metadata=extra.metadata,
                tensors=extra.tensors, magic=extra.magic,
            )
            for extra in plan.companions
        ]  # fmt: skip
        write_files([*files, *beside], title="export", threads=config.threads)
    report = _report(config, plan, predictors, files, time.monotonic() - start_s)
    if not config.dry_run:
        _write_card(config.out, report, plan)
    return report


def _write_card(out: Path, report: ExportReport, plan: Plan) -> None:
    card = model_card(
        name=str(plan.metadata["general.name"].value),
        file=report.out.name,
        target=plan.target,
        size_bytes=report.size_bytes,
        types=report.types,
        info=plan.info,
        notes=report.notes,
    )
    with atomic_file(card_path(out)) as stream:
        stream.write(card.encode())


def _plan(config: ExportConfig) -> tuple[Plan, PredictorSource | None]:
    checkpoint = open_checkpoint(config.model)
    checkpoint.scans.start()  # while the tokenizer is read
    try:
        return _plan_of(config, checkpoint)
    except BaseException:
        checkpoint.scans.stop()
        raise


def _plan_of(config: ExportConfig, checkpoint: Checkpoint) -> tuple[Plan, PredictorSource | None]:
    spec = checkpoint.spec
    target = config.target or usual_target(spec)
    if config.vram_bytes is not None and target != "powerinfer":
        raise TsconvertError(f"--vram splits a model for PowerInfer, and the target is {target}; leave it out")
    inside = checkpoint.has_predictors and target != "llama.cpp"
    predictors = find_predictors(checkpoint, config.predictors) if config.predictors or inside else None
    if config.predictor_type is not None and predictors is None:
        raise TsconvertError("--predictor-type: the file has no predictors; leave it out, or give --predictors")
    vocabulary = read_vocabulary(checkpoint.folder, spec.vocab, pre=config.pre, eos=spec.eos)
    matrix = load_imatrix(config.imatrix) if config.imatrix is not None else None
    if matrix is not None and matrix.model_fingerprint not in (None, checkpoint.fingerprint):
        raise TsconvertError(f"{config.imatrix}: was made from another model; run `tsconvert imatrix` on this one")
    types = TypeChoice(
        config.type_name, config.predictor_type or "F16", config.tensor_types, _mix_model(spec, matrix),
        pure=config.pure or target == "powerinfer",
    )  # fmt: skip
    name = config.name or checkpoint.folder.resolve().name
    counts = neuron_order.find_counts(checkpoint, config.profile, predictors)
    orders = neuron_order.firing_order(counts) if config.order else {}
    if checkpoint.size_bytes >= LARGE_BYTES:  # else ggml alone is done sooner
        most = mixes.MIXES.get(types.default, types.default)
        prepare({most, "Q6_K"}, checkpoint.info(checkpoint.places[0]).dtype)
    info = read_info(checkpoint, predictors)
    job = Job(
        checkpoint=checkpoint, predictors=predictors, vocabulary=vocabulary, types=types, name=name, orders=orders,
        counts=counts, vram_bytes=config.vram_bytes, info=info,
    )  # fmt: skip
    plan = _PLANS[target](job)
    if config.split_max_bytes is not None and plan.magic != GGUF_MAGIC:
        raise TsconvertError("--split-max-size: PowerInfer reads one file only; leave it out")
    plan = replace(plan, notes=[*plan.notes, *types.notes(), *vocabulary.notes])
    if matrix is not None:
        tensors, notes = with_importance(plan.tensors, matrix, types.default)
        plan = replace(plan, tensors=tensors, notes=[*plan.notes, *notes], metadata={**plan.metadata, **matrix.keys()})
    plan = replace(plan, metadata=with_overrides(plan.metadata, plan.architecture, config.metadata), info=info)
    return (_split_predictors(plan, config) if config.separate_predictors else plan), predictors


def _split_predictors(plan: Plan, config: ExportConfig) -> Plan:
    """The plan with the predictors in a file of their own."""
    if plan.target != "sparse" or not any(predictor_file.is_predictor(tensor.name) for tensor in plan.tensors):
        raise TsconvertError(
            "--separate-predictors: there are no predictors that could go into a file of their own; give --predictors"
            " and --target sparse"
        )
    metadata, tensors, beside = predictor_file.split_off(
        plan.metadata, plan.tensors, plan.architecture, config.out.name
    )
    return replace(plan, metadata=metadata, tensors=tensors, companions=[*plan.companions, beside])


def _mix_model(spec: ModelSpec, matrix: ImportanceMatrix | None) -> mixes.Model:
    return mixes.Model(
        layers=spec.layers,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        experts=spec.experts,
        tied=spec.tied,
        importance=matrix is not None,
    )


def with_overrides(
    metadata: dict[str, Value], architecture: str, pairs: tuple[tuple[str, str], ...]
) -> dict[str, Value]:
    """``metadata`` with the user's keys; a key that is there keeps its type.

    Raises:
        TsconvertError: a key that the tensors decide, an array, or a value that does not fit the key's type.
    """
    out = dict(metadata)
    for key, given in pairs:
        if key == "general.architecture" or key.startswith((f"{architecture}.", "split.")):
            raise TsconvertError(f"--metadata {key}: this key follows from the model; leave it out")
        old = out.get(key)
        if old is not None and old.array:
            raise TsconvertError(f"--metadata {key}: this key is an array, which cannot be set; leave it out")
        kind, _, rest = given.partition(":")
        if kind in _PARSERS and (old is None or old.kind == kind):
            out[key] = Value(kind, _parsed(key, kind, rest))
        else:
            kind = old.kind if old is not None else "str"
            out[key] = Value(kind, _parsed(key, kind, given))
    return out


def _boolean(value: str) -> bool:
    return {"true": True, "false": False}[value.lower()]


_PARSERS: dict[str, Callable[[str], Any]] = {"u32": int, "i32": int, "f32": float, "bool": _boolean, "str": str}


def _parsed(key: str, kind: str, value: str) -> Any:
    try:
        parsed = _PARSERS[kind](value)
        Value(kind, parsed).encode()
    except Exception:
        raise TsconvertError(f"--metadata {key}: {value!r} is no {kind}; give one") from None
    return parsed


def _report(
    config: ExportConfig,
    plan: Plan,
    predictors: PredictorSource | None,
    files: list[GgufPlan],
    elapsed_s: float,
) -> ExportReport:
    ranks = [rank for row in predictors.ranks for rank in row] if predictors is not None else []
    beside = [config.out.with_name(config.out.name + extra.suffix) for extra in plan.companions]
    return ExportReport(
        out=files[0].path,
        target=plan.target,
        architecture=plan.architecture,
        size_bytes=sum(file.size_bytes for file in files),
        tensors={tensor.name: tensor.type_name for tensor in plan.tensors},
        types=bytes_by_type(plan.tensors),
        predictors=sum(1 for rank in ranks if rank),
        files=[str(path) for path in (*(file.path for file in files), *beside)],
        notes=plan.notes,
        elapsed_s=round(elapsed_s, 3),
        dry_run=config.dry_run,
    )
