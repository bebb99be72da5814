"""export-gguf: a checkpoint becomes a GGUF file, tensor by tensor, never half of one under its final name."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..common.errors import TsconvertError
from ..common.files import atomic_file, refuse_existing
from ..model.checkpoint import Checkpoint, open_checkpoint
from ..predictors.profile.file import load_profile
from .config import ExportConfig
from .gguf.parallel_file import LARGE_BYTES
from .gguf.shards import sharded, write_files
from .gguf.tensor_plan import TensorPlan
from .gguf.values import u32
from .gguf.writer import GGUF_MAGIC, header
from .imatrix.file import ImportanceMatrix, load_imatrix, with_importance
from .metadata.model_card import card_path, model_card
from .metadata.model_keys import file_type
from .metadata.overrides import with_overrides
from .metadata.provenance import ModelInfo, read_info
from .report import FileReport
from .sizing.fit import chosen_types
from .sizing.measured import with_slopes
from .sizing.mix_sizes import mix_sizes
from .sizing.reading import read_shares
from .sizing.recipe import Recipe
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
    checkpoint = open_checkpoint(config.model)
    checkpoint.scans.start()  # while the tokenizer is read
    try:
        done = _plan(config, checkpoint)
    except BaseException:
        checkpoint.scans.stop()
        raise
    plan, predictors, info = done.plan, done.predictors, done.info
    for companion in plan.companions:
        refuse_existing(companion.path)
    files = sharded(config.out, plan.metadata, plan.tensors, magic=plan.magic, max_bytes=config.split_max_bytes)
    if not config.dry_run:
        write_files([*files, *plan.companions], title="export", threads=config.threads)
    report = ExportReport.of_files(
        files, plan.companions, target=plan.target, architecture=plan.architecture,
        predictors=sum(1 for row in predictors.ranks for rank in row if rank) if predictors is not None else 0,
        notes=plan.notes, elapsed_s=round(time.monotonic() - start_s, 3), dry_run=config.dry_run, recipe=done.recipe,
        mixes=done.mixes,
    )  # fmt: skip
    if not config.dry_run:
        card = model_card(
            name=str(plan.metadata["general.name"].value), file=report.out.name, target=plan.target,
            size_bytes=report.size_bytes, types=report.types, info=info, notes=report.notes,
        )  # fmt: skip
        with atomic_file(card_path(config.out)) as stream:
            stream.write(card.encode())
    return report


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """The file as it is going to be, and what it is made of."""

    plan: Plan
    predictors: PredictorSource | None
    info: ModelInfo
    recipe: Recipe | None
    mixes: dict[str, int] | None


def _plan(config: ExportConfig, checkpoint: Checkpoint) -> _Planned:
    spec = checkpoint.spec
    target = config.target or ("sparse" if spec.sparse else "llama.cpp")
    if config.vram_bytes is not None and target != "powerinfer":
        raise TsconvertError(f"--vram splits a model for PowerInfer, and the target is {target}; leave it out")
    if config.attention_share is not None and (target != "sparse" or not spec.sparse):
        raise TsconvertError(
            "--attention-share is for sparse models in files for our own runner: the model is"
            f" {spec.activation} and the target {target}; leave it out"
        )
    inside = checkpoint.has_predictors and target != "llama.cpp"
    predictors = None
    if config.predictors or inside:
        predictors = find_predictors(checkpoint, config.predictors, with_relu=target == "powerinfer")
    if config.predictor_type is not None and predictors is None:
        raise TsconvertError("--predictor-type: the file has no predictors; leave it out, or give --predictors")
    vocabulary = read_vocabulary(checkpoint.folder, spec.vocab, pre=config.pre)
    matrix = load_imatrix(config.imatrix, checkpoint.fingerprint) if config.imatrix is not None else None
    mix_model = mixes.Model(
        layers=spec.layers, heads=spec.heads, kv_heads=spec.kv_heads, experts=spec.experts, tied=spec.tied,
        importance=matrix is not None or config.by_size,
    )  # fmt: skip
    trained_for = predictors.stored_as if predictors is not None and target == "sparse" else "F16"
    types = TypeChoice(
        config.type_name, config.predictor_type or trained_for, config.tensor_types, mix_model,
        pure=config.pure or target == "powerinfer", output=config.output_type, embedding=config.embedding_type,
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
        attention_share=config.attention_share,
    )  # fmt: skip
    plan = _PLANS[target](job)
    if config.split_max_bytes is not None and plan.magic != GGUF_MAGIC:
        raise TsconvertError("--split-max-size: PowerInfer reads one file only; leave it out")
    plan = replace(plan, notes=[*plan.notes, *types.notes(), *vocabulary.notes])
    matrices = [tensor.name for tensor in plan.tensors if _is_matrix(tensor)]
    sizes, recipe = None, None
    if config.dry_run and plan.magic == GGUF_MAGIC:
        sizes = mix_sizes(plan.tensors, matrices, mix_model, len(header(plan.metadata, plan.tensors)))
    if config.by_size:
        matrix = with_slopes(config, matrix, model=config.model, out=config.out, dry_run=config.dry_run)
    if config.by_size or config.recipe is not None:
        plan, recipe = _by_size(config, checkpoint, plan, matrices, types, matrix, predictors)
    if matrix is not None:
        most = recipe.common if recipe is not None else types.default
        tensors, notes = with_importance(plan.tensors, matrix, most, by_slopes=recipe is not None)
        plan = replace(plan, tensors=tensors, notes=[*plan.notes, *notes], metadata={**plan.metadata, **matrix.keys()})
    plan = replace(plan, metadata=with_overrides(plan.metadata, plan.architecture, config.metadata))
    plan = separate_predictors.split_off(plan, config.out) if config.separate_predictors else plan
    return _Planned(plan=plan, predictors=predictors, info=info, recipe=recipe, mixes=sizes)


def _is_matrix(tensor: TensorPlan) -> bool:
    """Whether a mix quantizes it."""
    return mixes.is_quantized(tensor.name, len(tensor.shape)) and not separate_predictors.is_predictor(tensor.name)


def _by_size(
    config: ExportConfig, checkpoint: Checkpoint, plan: Plan, matrices: list[str], types: TypeChoice,
    matrix: ImportanceMatrix | None, predictors: PredictorSource | None,
) -> tuple[Plan, Recipe]:  # fmt: skip
    """``plan`` with the types that the size or the recipe gives, and the recipe."""
    spec = checkpoint.spec
    shares: dict[str, float] = {}
    if config.target_token_bytes is not None:
        known = predictors.report.get("mean", {}).get("predicted_density") if predictors is not None else None
        if config.profile is not None and known is None:
            known = load_profile(config.profile, checkpoint.fingerprint).density
        read = spec.experts_per_token / spec.experts if spec.experts else 1.0
        silent = spec.sparse and plan.target == "sparse"
        shares = read_shares(
            plan.tensors,
            sparse=silent,
            density=config.density or known,
            experts_read=read,
            attention_share=config.attention_share or 1.0,
        )
    recipe = chosen_types(
        config, plan.tensors, matrices, types, matrix, header_bytes=len(header(plan.metadata, plan.tensors)),
        engine=plan.target, shares=shares,
    )  # fmt: skip
    metadata = {**plan.metadata, **recipe.keys(), "general.file_type": u32(file_type(recipe.common))}
    tensors = [replace(each, type_name=recipe.types.get(each.name, each.type_name)) for each in plan.tensors]
    notes = [*plan.notes, *([recipe.note] if recipe.note else [])]
    return replace(plan, tensors=tensors, metadata=metadata, notes=notes), recipe
