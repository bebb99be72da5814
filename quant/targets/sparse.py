"""The target `sparse`: tsconvert's own dialect, architecture `turbosparse`, which docs/format.md specifies.

Shape suffixes: D model width, F neurons, R predictor rank, E experts.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from ...model.tensor_names import PREDICTOR, ffn_places, gguf_name
from ..gguf.tensor_plan import Rows, Source
from ..gguf.values import Value, array, text, u32
from ..metadata import rope
from ..metadata.feature_keys import feature_keys, used_features
from ..metadata.model_keys import later_shape_keys, shape_keys
from .engine_form import engine_form
from .neuron_order import in_order
from .plan import Job, Plan, TensorTable
from .predictor_source import PredictorSource

ARCHITECTURE = "turbosparse"


def plan(job: Job) -> Plan:
    """The file for tsconvert's runner, and for any engine that implements docs/format.md."""
    spec = job.spec
    metadata = job.general_keys(ARCHITECTURE) | shape_keys(spec, ARCHITECTURE, spec.context)
    metadata |= later_shape_keys(spec, ARCHITECTURE)
    metadata |= rope.scaling_keys(spec, ARCHITECTURE, reads=(*rope.TUNED, "type"))
    metadata |= _own_keys(job) | feature_keys(spec, ARCHITECTURE, None)
    metadata |= job.vocabulary.metadata(huggingface=True)
    table = TensorTable(job, engine_form(spec, None, ARCHITECTURE))
    table.embedding()
    for layer in range(spec.layers):
        table.layer(layer, transpose_down=True)
        if job.predictors is not None:
            _add_predictors(table, job.predictors, layer)
    table.head()
    table.order()
    return Plan(
        target="sparse",
        architecture=ARCHITECTURE,
        metadata=metadata,
        tensors=table.tensors,
        notes=_notes(job.predictors),
    )


def _own_keys(job: Job) -> dict[str, Value]:
    spec = job.spec
    ffns, predictors = spec.layers * spec.ffns, job.predictors
    thresholds = list(chain(*predictors.thresholds)) if predictors else [float("nan")] * ffns
    ranks = list(chain(*predictors.ranks)) if predictors else [0] * ffns
    keys = {
        "format_version": u32(2 if used_features(spec) else 1),  # version 1 knows no features
        "activation": text(spec.activation),
        "source_fingerprint": text(job.checkpoint.fingerprint),
        "predictor.threshold": array("f32", thresholds),
        "predictor.rank": array("u32", ranks),
    }
    if any(spec.thresholds):
        keys["activation_threshold"] = array("f32", list(spec.thresholds))
    if any(spec.up_thresholds):
        keys["up_threshold"] = array("f32", list(spec.up_thresholds))
    return {f"{ARCHITECTURE}.{name}": value for name, value in keys.items()}


def _add_predictors(table: TensorTable, predictors: PredictorSource, layer: int) -> None:
    """fc1 [R, D] and fc2 [F, R] of a layer; experts stacked, smaller ranks padded with zeros, which add nothing."""
    spec = table.job.spec
    rank = max(predictors.ranks[layer])
    if not rank:
        return
    stack = (spec.experts,) if spec.experts else ()
    for part, shape in zip(PREDICTOR, ((rank, spec.width), (spec.neurons, rank)), strict=True):
        name = gguf_name(ffn_places(spec, layer, part)[0])
        type_name = table.job.types.predictor_matrix(name, shape[-1])
        table.add(name, (*stack, *shape), type_name, _predictor_rows(table.job, predictors, layer, part, shape))


def _predictor_rows(job: Job, predictors: PredictorSource, layer: int, part: str, shape: tuple[int, int]) -> Source:
    def rows_of_experts() -> Iterator[Rows]:
        for expert, rank in enumerate(predictors.ranks[layer]):
            rows = np.zeros(shape, np.float32)
            if rank:
                predictor = predictors.normed(layer, expert)
                matrix = predictor.fc1_RD if part == "fc1" else in_order(predictor.fc2_FR, job.orders, layer, expert)
                rows[: matrix.shape[0], : matrix.shape[1]] = matrix
            yield rows

    return rows_of_experts


def _notes(predictors: PredictorSource | None) -> list[str]:
    if predictors is None:
        return []
    ranks = [rank for row in predictors.ranks for rank in row]
    missing = ranks.count(0)
    return [f"{missing} of {len(ranks)} FFNs have no predictor and run in exact mode"] if missing else []
