"""The target `sparse`: tsconvert's own dialect, architecture `turbosparse`, which docs/format.md specifies."""

from itertools import chain

from ...model.files.gguf.file import SPARSE
from ..gguf.values import Value, array, f32, text, u32
from ..metadata import rope
from ..metadata.feature_keys import feature_keys, used_features
from ..metadata.model_keys import later_shape_keys, shape_keys
from .engine_form import engine_form
from .plan import Job, Plan, TensorTable
from .predictor_source import PredictorSource


def plan(job: Job) -> Plan:
    """The file for tsconvert's runner, and for any engine that implements docs/format.md."""
    spec = job.spec
    metadata = job.general_keys(SPARSE) | shape_keys(spec, SPARSE, spec.context)
    metadata |= later_shape_keys(spec, SPARSE)
    metadata |= rope.scaling_keys(spec, SPARSE, reads=(*rope.TUNED, "type"))
    metadata |= _own_keys(job) | feature_keys(spec, SPARSE, None)
    metadata |= job.vocabulary.metadata(huggingface=True)
    table = TensorTable(job, engine_form(spec, None, SPARSE))
    table.embedding()
    turned = ["ffn_down"] if job.attention_share is None else ["ffn_down", "attn_output"]
    for layer in range(spec.layers):
        table.layer(layer, turned=turned)
        if job.predictors is not None and any(job.predictors.ranks[layer]):
            table.predictors(layer, job.predictors.ranks[layer], job.predictors.normed)
    table.head()
    table.order()
    return Plan(
        target="sparse",
        architecture=SPARSE,
        metadata=metadata,
        tensors=table.tensors,
        notes=_notes(job.predictors),
    )


def _own_keys(job: Job) -> dict[str, Value]:
    spec = job.spec
    ffns, predictors = spec.layers * spec.ffns, job.predictors
    thresholds = list(chain(*predictors.thresholds)) if predictors else [float("nan")] * ffns
    ranks = list(chain(*predictors.ranks)) if predictors else [0] * ffns
    features = used_features(
        spec,
        linear_predictors=predictors is not None and predictors.linear,
        attention_share=job.attention_share is not None,
    )
    keys = {
        "format_version": u32(2 if features else 1),  # version 1 knows no features
        "activation": text(spec.activation),
        "source_fingerprint": text(job.checkpoint.fingerprint),
        "predictor.threshold": array("f32", thresholds),
        "predictor.rank": array("u32", ranks),
    }
    if features:
        keys["features"] = array("str", features)
    if job.attention_share is not None:
        keys["attention.output_share"] = f32(job.attention_share)
    if any(spec.thresholds):
        keys["activation_threshold"] = array("f32", list(spec.thresholds))
    if any(spec.up_thresholds):
        keys["up_threshold"] = array("f32", list(spec.up_thresholds))
    return {f"{SPARSE}.{name}": value for name, value in keys.items()}


def _notes(predictors: PredictorSource | None) -> list[str]:
    if predictors is None:
        return []
    ranks = [rank for row in predictors.ranks for rank in row]
    missing = ranks.count(0)
    return [f"{missing} of {len(ranks)} FFNs have no predictor and run in exact mode"] if missing else []
