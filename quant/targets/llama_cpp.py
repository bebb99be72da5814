"""The target `llama.cpp`: what llama.cpp's own converter writes for a Llama, Mistral or Mixtral model.

Architecture `llama`: llama.cpp computes SiLU there whatever the file says, so sparse models are refused.
"""

from ...common.errors import TsconvertError
from ...model.tensor_names import FFN, Place
from . import rope
from .plan import Job, Plan, TensorTable, capped_context, general_keys, model_keys, wide_keys

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
    metadata = general_keys(job, ARCHITECTURE) | model_keys(spec, ARCHITECTURE, context)
    metadata |= wide_keys(spec, ARCHITECTURE) | rope.scaling_keys(spec, ARCHITECTURE, own=False)
    metadata |= job.vocabulary.metadata(chat=True, huggingface=True)
    notes += job.vocabulary.engine_notes
    table = TensorTable(job)
    table.rope_frequencies()
    table.matrix(Place("token_embd"))
    for layer in range(spec.layers):
        table.attention(layer)
        table.vector(Place("ffn_norm", layer))
        if spec.experts:
            table.router(layer)
        for role in FFN:
            table.ffn(layer, role)
    table.vector(Place("output_norm"))
    if not spec.tied:
        table.matrix(Place("output"))
    return Plan(target="llama.cpp", architecture=ARCHITECTURE, metadata=metadata, tensors=table.tensors, notes=notes)
