"""The target `llama.cpp`: what llama.cpp's own converter writes for a Llama, Mistral or Mixtral model.

Architecture `llama`: llama.cpp computes SiLU there whatever the file says, so sparse models are refused.
"""

from ...common.errors import TsconvertError
from ..metadata import rope
from ..metadata.model_keys import capped_context, later_shape_keys, shape_keys
from .plan import Job, Plan, TensorTable

ARCHITECTURE = "llama"


def plan(job: Job) -> Plan:
    """The file for llama.cpp.

    Raises:
        TsconvertError: the model is sparse, or predictors were given.
    """
    spec = job.spec
    if spec.sparse:
        raise TsconvertError(
            f"{job.checkpoint.folder}: the FFN computes {spec.activation}, and llama.cpp would load it and compute"
            " SwiGLU in silence; export it with --target sparse or --target powerinfer"
        )
    if job.predictors is not None:
        raise TsconvertError("llama.cpp has no predictors; leave --predictors out or export with --target sparse")
    context, notes = capped_context(spec, "llama.cpp's llama architecture")
    metadata = job.general_keys(ARCHITECTURE) | shape_keys(spec, ARCHITECTURE, context)
    metadata |= later_shape_keys(spec, ARCHITECTURE) | rope.scaling_keys(spec, ARCHITECTURE, own=False)
    metadata |= job.vocabulary.metadata(huggingface=True)
    notes += job.vocabulary.engine_notes
    table = TensorTable(job)
    table.embedding()
    for layer in range(spec.layers):
        table.layer(layer, transpose_down=False)
    table.head()
    return Plan(target="llama.cpp", architecture=ARCHITECTURE, metadata=metadata, tensors=table.tensors, notes=notes)
