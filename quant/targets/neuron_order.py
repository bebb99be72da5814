"""Neurons in the order of firing, hot ones first: an exact permutation of each FFN's gate, up, down and fc2.

The FFN's output is a sum over neurons, so their order is free. Hot neurons side by side are read in long runs, stay in
caches together, and are a prefix of the file for an engine that keeps some on a GPU. The permutation stays in the file:
as the tensors `blk.N.ffn_order` in the sparse dialect, as one key where an engine refuses extra tensors.
Shape suffixes: D model width, F neurons, E experts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.spec import ModelSpec
from ...predictors.profile.file import Profile, load_profile
from ..gguf.file import GgufFile
from ..gguf.tensor_plan import Rows, Source, TensorPlan
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


def _profile_counts(spec: ModelSpec, profile: Profile) -> Counts:
    """How often the profile saw each neuron fire.

    Raises:
        TsconvertError: the profile has other layers, experts or neurons than the model.
    """
    shape = (len(profile.layers), *profile.layers[0].counts_CEF.shape[1:]) if profile.layers else ()
    if shape != (spec.layers, spec.ffns, spec.neurons):
        raise TsconvertError(
            f"the profile has layers, experts and neurons {list(shape)}, the model"
            f" {[spec.layers, spec.ffns, spec.neurons]}; make a profile of this model"
        )
    return {
        (layer, expert): profile.counts(layer, expert).astype(np.float64)
        for layer in range(spec.layers)
        for expert in range(spec.ffns)
    }


def find_counts(checkpoint: Checkpoint, profile: Path | None, predictors: PredictorSource | None) -> Counts:
    """How often neurons fire: by the profile, or by what the predictors' training counted; empty without either.

    Raises:
        TsconvertError: a profile of another model, or one for a model all of whose neurons fire.
    """
    spec = checkpoint.spec
    if profile is not None:
        if not spec.sparse:
            raise TsconvertError(
                f"{checkpoint.folder}: no neuron of a SwiGLU model is silent, so there is no order of firing; leave"
                " --profile out"
            )
        return _profile_counts(spec, load_profile(profile, checkpoint.fingerprint))
    if predictors is None:
        return {}
    pairs = ((layer, expert) for layer in range(spec.layers) for expert in range(spec.ffns))
    counts = {pair: predictors.fired(*pair) for pair in pairs}
    return {pair: count_F.astype(np.float64) for pair, count_F in counts.items() if count_F is not None}


def in_order(rows: Ordered, orders: Orders, layer: int, expert: int) -> Ordered:
    """``rows``, one a neuron, in the file's order."""
    order_F = orders.get((layer, expert))
    return rows if order_F is None else cast("Ordered", rows[order_F])


def order_tensors(spec: ModelSpec, orders: Orders) -> list[TensorPlan]:
    """`blk.N.ffn_order`, I32 [F], or [E, F]: for each neuron of the file, its number in the source."""
    plans = []
    for layer in range(spec.layers if orders else 0):
        order_EF = np.stack([_order(spec, orders, layer, expert) for expert in range(spec.ffns)]).astype(np.float32)
        shape = (spec.experts, spec.neurons) if spec.experts else (spec.neurons,)
        name = _TENSOR.format(layer)
        plans.append(TensorPlan(name=name, shape=shape, type_name="I32", source=_constant(order_EF)))
    return plans


def _constant(rows: Rows) -> Source:
    return lambda: [rows]


def order_key(spec: ModelSpec, orders: Orders) -> dict[str, Value]:
    """The key `tsconvert.neuron_order`, i32 [layers x E x F], for engines that refuse extra tensors."""
    if not orders:
        return {}
    pairs = ((layer, expert) for layer in range(spec.layers) for expert in range(spec.ffns))
    return {KEY: array("i32", np.concatenate([_order(spec, orders, *pair) for pair in pairs]).tolist())}


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
    pairs = [(layer, expert) for layer in range(spec.layers) for expert in range(spec.ffns)]
    return dict(zip(pairs, whole, strict=True))


def _order(spec: ModelSpec, orders: Orders, layer: int, expert: int) -> Index:
    order_F = orders.get((layer, expert))
    return np.arange(spec.neurons) if order_F is None else order_F


def _whole_numbers(value: object) -> Index:
    ok = isinstance(value, Sequence) and all(isinstance(item, int) for item in value)
    return np.asarray(value if ok else [], np.int64)
