"""export-gguf: a checkpoint becomes a GGUF file, tensor by tensor, never half of one under its final name."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..common.errors import TsconvertError
from ..common.files import atomic_file, refuse_existing
from ..model.checkpoint import Checkpoint, open_checkpoint
from .config import ExportConfig
from .gguf.parallel_file import LARGE_BYTES
from .gguf.shards import sharded, write_files
from .gguf.writer import GGUF_MAGIC
from .imatrix.file import load_imatrix, with_importance
from .metadata.model_card import card_path, model_card
from .metadata.overrides import with_overrides
from .metadata.provenance import ModelInfo, read_info
from .report import FileReport
from .targets import llama_cpp, neuron_order, powerinfer, separate_predictors, sparse
from .targets.plan import Job, Plan
from .targets.predictor_source import PredictorSource, find_predictors
from .types import mixes
from .types.encoding import prepare
from .types.type_choice import TypeChoice
from .vocabulary.reader import read_vocabulary

_PLANS: dict[str, Callable[[Job], Plan]] = {
    "llama.cpp": llama_cpp.plan,
    "powerinfer": powerinfer.plan,
    "sparse": sparse.plan,
}


@dataclass(frozen=True, kw_only=True)
class ExportReport(FileReport):
    """The file that was exported."""

    KEYS = ("out", "target", "architecture", "size_bytes", "tensors", "types", "predictors")
    target: str
    architecture: str
    predictors: int
    """FFNs that have one in the file."""

    def __str__(self) -> str:
        predictors = f"  predictors for {self.predictors} FFNs" if self.predictors else "  no predictors"
        return self._text(f"for {self.target} (architecture {self.architecture})", predictors, width=6)


def export_unverified(config: ExportConfig) -> ExportReport:
    """Write the GGUF file that ``config`` asks for; `evaluate.export.export_gguf` also compares it with its source.

    Returns:
        What the file holds, or would hold with ``dry_run``.

    Raises:
        TsconvertError: the output exists, the model or its tokenizer is incomplete, the target's engine could not
            compute it, predictors belong to another model, or a weight is NaN or infinite. No file is left then.

    Example:
        >>> export_unverified(ExportConfig(model="tiny-mistral", out=Path("tiny.gguf"), type_name="Q8_0"))
    """
    start_s = time.monotonic()
    refuse_existing(config.out)
    refuse_existing(card_path(config.out))
    checkpoint = open_checkpoint(config.model)
    checkpoint.scans.start()  # while the tokenizer is read
    try:
        plan, predictors, info = _plan(config, checkpoint)
    except BaseException:
        checkpoint.scans.stop()
        raise
    for companion in plan.companions:
        refuse_existing(companion.path)
    files = sharded(config.out, plan.metadata, plan.tensors, magic=plan.magic, max_bytes=config.split_max_bytes)
    if not config.dry_run:
        write_files([*files, *plan.companions], title="export", threads=config.threads)
    report = ExportReport.of_files(
        files, plan.companions, target=plan.target, architecture=plan.architecture,
        predictors=sum(1 for row in predictors.ranks for rank in row if rank) if predictors is not None else 0,
        notes=plan.notes, elapsed_s=round(time.monotonic() - start_s, 3), dry_run=config.dry_run,
    )  # fmt: skip
    if not config.dry_run:
        card = model_card(
            name=str(plan.metadata["general.name"].value), file=report.out.name, target=plan.target,
            size_bytes=report.size_bytes, types=report.types, info=info, notes=report.notes,
        )  # fmt: skip
        with atomic_file(card_path(config.out)) as stream:
            stream.write(card.encode())
    return report


def _plan(config: ExportConfig, checkpoint: Checkpoint) -> tuple[Plan, PredictorSource | None, ModelInfo]:
    spec = checkpoint.spec
    target = config.target or ("sparse" if spec.sparse else "llama.cpp")
    if config.vram_bytes is not None and target != "powerinfer":
        raise TsconvertError(f"--vram splits a model for PowerInfer, and the target is {target}; leave it out")
    inside = checkpoint.has_predictors and target != "llama.cpp"
    predictors = find_predictors(checkpoint, config.predictors) if config.predictors or inside else None
    if config.predictor_type is not None and predictors is None:
        raise TsconvertError("--predictor-type: the file has no predictors; leave it out, or give --predictors")
    vocabulary = read_vocabulary(checkpoint.folder, spec.vocab, pre=config.pre)
    matrix = load_imatrix(config.imatrix, checkpoint.fingerprint) if config.imatrix is not None else None
    mix_model = mixes.Model(
        layers=spec.layers, heads=spec.heads, kv_heads=spec.kv_heads, experts=spec.experts, tied=spec.tied,
        importance=matrix is not None,
    )  # fmt: skip
    trained_for = predictors.stored_as if predictors is not None and target == "sparse" else "F16"
    types = TypeChoice(
        config.type_name, config.predictor_type or trained_for, config.tensor_types, mix_model,
        pure=config.pure or target == "powerinfer",
    )  # fmt: skip
    counts = neuron_order.find_counts(checkpoint, config.profile, predictors)
    if checkpoint.size_bytes >= LARGE_BYTES:  # else ggml alone is done sooner
        most = mixes.MIXES.get(types.default, types.default)
        prepare({most, "Q6_K"}, checkpoint.info(checkpoint.places[0]).dtype)
    info = read_info(checkpoint, predictors.report if predictors is not None else {})
    job = Job(
        out=config.out, checkpoint=checkpoint, predictors=predictors, vocabulary=vocabulary, types=types,
        name=config.name or checkpoint.folder.resolve().name, info=info, counts=counts,
        orders=neuron_order.firing_order(counts) if config.order else {}, vram_bytes=config.vram_bytes,
    )  # fmt: skip
    plan = _PLANS[target](job)
    if config.split_max_bytes is not None and plan.magic != GGUF_MAGIC:
        raise TsconvertError("--split-max-size: PowerInfer reads one file only; leave it out")
    plan = replace(plan, notes=[*plan.notes, *types.notes(), *vocabulary.notes])
    if matrix is not None:
        tensors, notes = with_importance(plan.tensors, matrix, types.default)
        plan = replace(plan, tensors=tensors, notes=[*plan.notes, *notes], metadata={**plan.metadata, **matrix.keys()})
    plan = replace(plan, metadata=with_overrides(plan.metadata, plan.architecture, config.metadata))
    return (separate_predictors.split_off(plan, config.out) if config.separate_predictors else plan), predictors, info
