"""The target `sparse`: tsconvert's own dialect, architecture `turbosparse`, which docs/format.md specifies.

Shape suffixes: D model width, F neurons, R predictor rank, E experts.
"""

from collections.abc import Iterator

import numpy as np

from ...model.tensor_names import PREDICTOR, Place, ffn_places, gguf_name
from ..gguf.sources import Chunks
from ..gguf.writer import Rows, Value, array, text, u32
from . import rope
from .neuron_order import in_order
from .plan import Job, Plan, TensorTable, general_keys, model_keys, wide_keys
from .predictor_source import PredictorSource

ARCHITECTURE = "turbosparse"
FORMAT_VERSION = 1


def plan(job: Job) -> Plan:
    """The file for tsconvert's runner, and for any engine that implements docs/format.md."""
    spec = job.spec
    metadata = general_keys(job, ARCHITECTURE) | model_keys(spec, ARCHITECTURE, spec.context)
    metadata |= wide_keys(spec, ARCHITECTURE) | rope.scaling_keys(spec, ARCHITECTURE, own=True) | _own_keys(job)
    metadata |= job.vocabulary.metadata(chat=True, huggingface=True)
    table = TensorTable(job)
    table.rope_frequencies()
    table.matrix(Place("token_embd"))
    for layer in range(spec.layers):
        table.attention(layer)
        table.vector(Place("ffn_norm", layer))
        if spec.experts:
            table.router(layer)
        table.ffn(layer, "ffn_gate")
        table.ffn(layer, "ffn_up")
        table.ffn(layer, "ffn_down", transpose=True)
        if job.predictors is not None:
            _add_predictors(table, job.predictors, layer)
    table.vector(Place("output_norm"))
    if not spec.tied:
        table.matrix(Place("output"))
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
    none: tuple[list[list[float]], list[list[int]]] = (
        [[float("nan")] * spec.ffns] * spec.layers,
        [[0] * spec.ffns] * spec.layers,
    )
    thresholds, ranks = (job.predictors.thresholds, job.predictors.ranks) if job.predictors is not None else none
    keys = {
        "format_version": u32(FORMAT_VERSION),
        "activation": text(spec.activation),
        "source_fingerprint": text(job.checkpoint.fingerprint),
        "predictor.threshold": array("f32", [value for row in thresholds for value in row]),
        "predictor.rank": array("u32", [rank for row in ranks for rank in row]),
    }
    if any(spec.thresholds):
        keys["activation_threshold"] = array("f32", list(spec.thresholds))
    if spec.sliding_window is not None:
        keys["attention.sliding_window"] = u32(spec.sliding_window)
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


def _predictor_rows(job: Job, predictors: PredictorSource, layer: int, part: str, shape: tuple[int, int]) -> Chunks:
    def chunks() -> Iterator[Rows]:
        for expert, rank in enumerate(predictors.ranks[layer]):
            rows = np.zeros(shape, np.float32)
            if rank:
                predictor = predictors.normed(layer, expert)
                matrix = predictor.fc1_RD if part == "fc1" else in_order(predictor.fc2_FR, job.orders, layer, expert)
                rows[: matrix.shape[0], : matrix.shape[1]] = matrix
            yield rows

    return chunks


def _notes(predictors: PredictorSource | None) -> list[str]:
    if predictors is None:
        return []
    ranks = [rank for row in predictors.ranks for rank in row]
    missing = ranks.count(0)
    return [f"{missing} of {len(ranks)} FFNs have no predictor and run in exact mode"] if missing else []
