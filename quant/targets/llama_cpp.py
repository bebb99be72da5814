"""The target `llama.cpp`: what llama.cpp's own converter writes for a model of a family.

llama.cpp computes SwiGLU (in Gemma GeGLU) whatever the file says. A ReGLU model becomes one of it by exact factors
(reglu_as_swiglu.py); a dReLU model cannot and is refused.
"""

from ...common.errors import TsconvertError
from ...model.families import FAMILIES
from ..metadata import rope
from ..metadata.feature_keys import feature_keys
from ..metadata.model_keys import capped_context, later_shape_keys, shape_keys
from .engine_form import engine_form
from .plan import Job, Plan, TensorTable, thresholds_left_out
from .reglu_as_swiglu import choose_exponents


def plan(job: Job) -> Plan:
    """The file for llama.cpp.

    Raises:
        TsconvertError: no FFN of llama.cpp equals the model's, or predictors were given.
    """
    spec = job.spec
    if spec.activation == "drelu":
        raise TsconvertError(
            f"{job.checkpoint.folder}: the FFN computes dReLU, which nothing in llama.cpp equals: it would compute"
            " SwiGLU in silence. Export it with --target sparse or --target powerinfer, or convert with `relufy"
            " --activation tswiglu` (or reglu): such models run in llama.cpp, as dense ones at their dense speed"
        )
    if job.predictors is not None:
        raise TsconvertError("llama.cpp has no predictors; leave --predictors out or export with --target sparse")
    gguf = FAMILIES[spec.family].gguf
    architecture = gguf.architecture
    where = f"{job.checkpoint.folder}: llama.cpp's {architecture}"
    windows = "windows" in gguf.native
    context, notes = capped_context(spec, f"llama.cpp's {architecture} architecture", windows=windows)
    form = engine_form(spec, gguf, where)
    metadata = job.general_keys(architecture) | shape_keys(spec, architecture, context)
    metadata |= later_shape_keys(spec, architecture) | rope.scaling_keys(spec, architecture, reads=("attn_factor",))
    metadata |= feature_keys(spec, architecture, gguf)
    metadata |= job.vocabulary.metadata(huggingface=True)
    notes += job.vocabulary.engine_notes
    exponents = choose_exponents(job.checkpoint, job.types) if spec.activation == "reglu" else None
    if exponents is not None:
        metadata |= exponents.keys()
        notes.append(
            f"ReGLU as llama.cpp's SwiGLU: relu(x) is stored as silu({2**exponents.sharpness} x) /"
            f" {2**exponents.sharpness}, by powers of two in the FFNs' weights; llama.cpp computes it as a dense model"
        )
    notes += thresholds_left_out(spec, "llama.cpp")
    table = TensorTable(job, form, exponents)
    table.embedding()
    for layer in range(spec.layers):
        table.layer(layer)
    table.head()
    return Plan(target="llama.cpp", architecture=architecture, metadata=metadata, tensors=table.tensors, notes=notes)
