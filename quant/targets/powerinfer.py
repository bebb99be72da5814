"""The target `powerinfer`: files that PowerInfer's sparse engine loads and computes correctly.

Facts of its dialect: magic PWRI; architecture `bamboo` computes dReLU and `llama` ReGLU; every FFN has a predictor, on
the residual before ffn_norm, with threshold 0; down is transposed; an extra tensor breaks the load; several wrong
choices load and compute garbage in silence, and those are what this file refuses.
"""

from ...common.errors import TsconvertError
from ...model.families.family import Gguf
from ...model.tensor_names import PREDICTOR, Place, gguf_name
from ..gguf.shards import GgufPlan
from ..gguf.tensor_plan import TensorPlan
from ..gguf.values import f32
from ..gguf.writer import POWERINFER_MAGIC
from ..metadata import rope
from ..metadata.model_keys import capped_context, shape_keys
from . import gpu_split
from .engine_form import engine_form
from .neuron_order import in_order, order_key
from .plan import Job, Plan, TensorTable, thresholds_left_out
from .predictor_source import PredictorSource

ARCHITECTURES = {"drelu": "bamboo", "reglu": "llama"}
_PLAIN = Gguf(architecture="llama")
DOWN_TYPES = ("F16", "Q4_0")
READ_TYPES = ("F32", "F16", "Q4_0", "Q8_0")
_Q4_WIDTH = 64
_OTHER_KERNEL = 1000  # FFNs up to this many neurons take a kernel with other semantics


def plan(job: Job) -> Plan:
    """The file for PowerInfer.

    Raises:
        TsconvertError: PowerInfer could not compute this model in these types; the message says why.
    """
    spec = job.spec
    predictors = _check_model(job)
    architecture = ARCHITECTURES[spec.activation]
    context, notes = capped_context(spec, "PowerInfer")
    metadata = job.general_keys(architecture) | shape_keys(spec, architecture, context)
    metadata |= rope.scaling_keys(spec, architecture, reads=())
    metadata["powerinfer.sparse_threshold"] = f32(0.0)
    metadata |= order_key(spec, job.orders)
    metadata |= job.vocabulary.metadata(huggingface=False)
    notes += job.vocabulary.check_powerinfer() + job.vocabulary.engine_notes + _notes(job, predictors)
    if job.types.default not in DOWN_TYPES and job.types.default in READ_TYPES:
        job.types.engine["ffn_down_t"] = "F16"
        notes.append(
            f"ffn_down_t is F16, the rest {job.types.default}: PowerInfer's sparse product takes down rows as F16 or"
            " Q4_0 alone; its GPU kernels take gate and up so as well, so this file is for the CPU"
        )
    table = TensorTable(job, engine_form(spec, _PLAIN, f"{job.checkpoint.folder}: PowerInfer"))
    table.embedding()
    for layer in range(spec.layers):
        table.layer(layer, turned=["ffn_down"])
        table.predictors(layer, predictors.ranks[layer], predictors.before_norm)
    table.head()
    if spec.tied:
        _add_output(table)
    _check_types(table.tensors, spec.width)
    companions = []
    if job.vram_bytes is not None:
        companion, note = _gpu_split(job, table.tensors)
        companions.append(companion)
        notes.append(note)
    return Plan(
        target="powerinfer", architecture=architecture, metadata=metadata, tensors=table.tensors, notes=notes,
        magic=POWERINFER_MAGIC, companions=companions,
    )  # fmt: skip


def _gpu_split(job: Job, tensors: list[TensorPlan]) -> tuple[GgufPlan, str]:
    spec = job.spec
    known = [layer for layer in range(spec.layers) if (layer, 0) in job.counts]
    counts = [in_order(job.counts[layer, 0], job.orders, layer, 0) for layer in known]
    whole = counts if len(counts) == spec.layers else None
    return gpu_split.plan_split(tensors, whole, job.vram_bytes or 0, spec.kv_heads * spec.head_dim, job.out)


def _add_output(table: TensorTable) -> None:
    """The head that PowerInfer needs even where it is the embedding."""
    job, name = table.job, gguf_name(Place("output"))
    shape = (job.spec.vocab, job.spec.width)
    table.add(name, shape, job.types.matrix(name, shape[-1]), table.rows(Place("token_embd")))


def _check_model(job: Job) -> PredictorSource:
    spec, where = job.spec, job.checkpoint.folder
    if spec.experts:
        raise TsconvertError(f"{where}: PowerInfer has no experts in sparse mode; export with --target sparse")
    if spec.activation not in ARCHITECTURES:
        raise TsconvertError(
            f"{where}: PowerInfer's sparse mode computes dReLU and ReGLU, not {spec.activation}; convert the dense"
            " model with `tsconvert relufy --activation drelu`"
        )
    if spec.head_dim * spec.heads != spec.width:
        raise TsconvertError(
            f"{where}: PowerInfer takes heads of {spec.width}/{spec.heads}, this model's have {spec.head_dim};"
            " export with --target sparse"
        )
    if rope.frequency_divisors(spec):
        raise TsconvertError(f"{where}: PowerInfer has no llama3 rope scaling; export with --target sparse")
    if job.predictors is None:
        raise TsconvertError(
            f"{where}: PowerInfer needs a predictor for every FFN; train them with `tsconvert predictors` and give"
            " --predictors"
        )
    bare = [layer for layer, ranks in enumerate(job.predictors.ranks) if not ranks[0]]
    if bare:
        raise TsconvertError(
            f"{job.predictors.folder or where}: layer {bare[0]} has no predictor ({len(bare)} of {spec.layers} layers),"
            " and PowerInfer needs one for every FFN; train the missing ones or export with --target sparse"
        )
    return job.predictors


def _check_types(tensors: list[TensorPlan], width: int) -> None:
    for tensor in tensors:
        kind, chosen = tensor.name.split(".")[-2], tensor.type_name
        if kind == "ffn_down_t" and chosen not in DOWN_TYPES:
            raise TsconvertError(
                f"{tensor.name}: PowerInfer's sparse product turns a {chosen} ffn_down_t into garbage without an error;"
                " choose --type F16, Q4_0, or F32 or Q8_0 (which leave it F16)"
            )
        if kind == "ffn_down_t" and chosen == "Q4_0" and width % _Q4_WIDTH:
            raise TsconvertError(
                f"{tensor.name}: PowerInfer needs a width that {_Q4_WIDTH} divides for Q4_0, and this model's is"
                f" {width}; choose --type F16"
            )
        if kind in PREDICTOR and chosen != "F16":
            raise TsconvertError(
                f"{tensor.name}: PowerInfer takes predictors as F16, not {chosen}; leave --predictor-type out"
            )
        if chosen not in READ_TYPES:
            raise TsconvertError(
                f"{tensor.name}: PowerInfer does not compute {chosen}; choose one of {', '.join(READ_TYPES)}"
            )


def _notes(job: Job, predictors: PredictorSource) -> list[str]:
    notes = thresholds_left_out(job.spec, "PowerInfer")
    calibrated = sum(1 for row in predictors.thresholds for threshold in row if threshold)
    if calibrated:
        notes.append(
            f"{calibrated} calibrated predictor thresholds do not carry over: PowerInfer's predictors see the input"
            " before the norm, where only threshold 0 keeps its meaning, so 0 is used; density and recall will differ"
        )
    if job.spec.neurons <= _OTHER_KERNEL:
        notes.append(
            f"warning: with {job.spec.neurons} neurons PowerInfer takes its other kernel (n_ff <= {_OTHER_KERNEL}),"
            " whose results differ from those of the sparse one"
        )
    return notes
