"""Neurons in the order of firing, hot ones first: an exact permutation of each FFN's gate, up, down and fc2.

The FFN's output is a sum over neurons, so their order is free. Hot neurons side by side are read in long runs, stay in
caches together, and are a prefix of the file for an engine that keeps some on a GPU. The permutation stays in the file:
as the tensors `blk.N.ffn_order` in the sparse dialect, as one key where an engine refuses extra tensors.
Shape suffixes: L layers, E experts, F neurons.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.files.gguf.file import GgufFile
from ...model.spec import ModelSpec
from ...predictors.profile.file import load_profile
from ..gguf.tensor_plan import TensorPlan
from ..gguf.values import Value, array
from .predictor_source import PredictorSource

Index = npt.NDArray[np.int64]
Orders = Mapping[tuple[int, int], Index]
"""(layer, expert) -> for each neuron of the file, its number in the source."""
Counts = Mapping[tuple[int, int], npt.NDArray[np.float64]]
"""(layer, expert) -> how often each neuron fired, in the source's order."""
Ordered = TypeVar("Ordered", bound=npt.NDArray[np.floating])
KEY = "tsconvert.neuron_order"
_TENSOR = "blk.{}.ffn_order"


def firing_order(counts: Counts) -> Orders:
    """Each FFN's neurons by how often they fired, the most first; equals stay in the source's order."""
    return {pair: np.argsort(-count_F, kind="stable") for pair, count_F in counts.items()}


def find_counts(checkpoint: Checkpoint, profile: Path | None, predictors: PredictorSource | None) -> Counts:
    """How often neurons fire: by the profile, or by what the predictors' training counted; empty without either.

    Raises:
        TsconvertError: a profile of another model, or one for a model all of whose neurons fire.
    """
    spec = checkpoint.spec
    counts: dict[tuple[int, int], npt.NDArray[Any] | None] = {}
    if profile is not None:
        if not spec.sparse:
            raise TsconvertError(
                f"{checkpoint.folder}: no neuron of a SwiGLU model is silent, so there is no order of firing; leave"
                " --profile out"
            )
        found = load_profile(profile, checkpoint.fingerprint)
        shape, wanted = (
            [len(found.layers), *found.layers[0].counts_CEF.shape[1:]],
            [spec.layers, spec.ffns, spec.neurons],
        )
        if shape != wanted:
            raise TsconvertError(
                f"the profile has layers, experts and neurons {shape}, the model {wanted}; make a profile of this model"
            )
        counts = {pair: found.counts(*pair) for pair in _ffns(spec)}
    elif predictors is not None:
        counts = {pair: predictors.fired(*pair) for pair in _ffns(spec)}
    return {pair: count_F.astype(np.float64) for pair, count_F in counts.items() if count_F is not None}


def _ffns(spec: ModelSpec) -> list[tuple[int, int]]:
    """The layer and expert of every FFN, in the order of files."""
    return [(layer, expert) for layer in range(spec.layers) for expert in range(spec.ffns)]


def in_order(rows: Ordered, orders: Orders, layer: int, expert: int) -> Ordered:
    """``rows``, one a neuron, in the file's order."""
    order_F = orders.get((layer, expert))
    return rows if order_F is None else cast("Ordered", rows[order_F])


def order_tensors(spec: ModelSpec, orders: Orders) -> list[TensorPlan]:
    """`blk.N.ffn_order`, I32 [F], or [E, F]: for each neuron of the file, its number in the source."""
    if not orders:
        return []
    shape = (spec.experts, spec.neurons) if spec.experts else (spec.neurons,)
    order_LEF = _whole_order(spec, orders)
    return [
        TensorPlan.of(_TENSOR.format(layer), order_EF.reshape(shape), "I32") for layer, order_EF in enumerate(order_LEF)
    ]


def order_key(spec: ModelSpec, orders: Orders) -> dict[str, Value]:
    """The key `tsconvert.neuron_order`, i32 [layers x E x F], for engines that refuse extra tensors."""
    return {KEY: array("i32", _whole_order(spec, orders).reshape(-1).tolist())} if orders else {}


def read_orders(file: GgufFile, spec: ModelSpec) -> Orders:
    """The permutations that a file keeps; empty if its neurons are in the source's order.

    Raises:
        TsconvertError: what is there is no permutation of the neurons.
    """
    count = spec.layers * spec.ffns * spec.neurons
    if KEY in file.metadata:
        where, flat = f"key {KEY}", _whole_numbers(file.metadata[KEY])
    else:
        tensors = [file.tensors.get(_TENSOR.format(layer)) for layer in range(spec.layers)]
        found = [tensor for tensor in tensors if tensor is not None and tensor.type_name == "I32"]
        if not found:
            return {}
        where, flat = _TENSOR.format("N"), np.concatenate([tensor.raw.view("<i4") for tensor in found]).astype(np.int64)
    whole = flat.reshape(-1, spec.neurons) if flat.size == count else np.empty((0, 0), np.int64)
    if not whole.size or not (np.sort(whole, axis=1) == np.arange(spec.neurons)).all():
        raise TsconvertError(
            f"{file.path}: {where} is no permutation of {spec.neurons} neurons in every FFN; export it again"
        )
    return dict(zip(_ffns(spec), whole, strict=True))


def _whole_order(spec: ModelSpec, orders: Orders) -> Index:
    """The order of all neurons, [L, E, F]."""
    whole = [orders.get(pair, np.arange(spec.neurons)) for pair in _ffns(spec)]
    return np.stack(whole).reshape(spec.layers, spec.ffns, spec.neurons)


def _whole_numbers(value: object) -> Index:
    ok = isinstance(value, Sequence) and all(isinstance(item, int) for item in value)
    return np.asarray(value if ok else [], np.int64)
