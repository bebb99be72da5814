"""A model's weights, buffers and threads, ready for steps: the only door to the compiled code."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...model.files.gguf import ggml
from ...model.spec import THRESHOLDED, ModelSpec
from ...model.tensor_names import BIASED, MATRICES, NORMS, UP_SCALE, VECTORS
from .compiling import function_table
from .parameters import (
    ACTIVATIONS,
    BLOCK,
    BUFFERS,
    COUNTS,
    LAYER,
    MODES,
    QK_NORMS,
    SCRATCH_BYTES,
    TENSOR,
    buffer_of,
    new_buffers,
    new_parameters,
)
from .step import steps
from .threads import Team
from .weight_types import input_bytes, type_record

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a step reads, and never writes."""

    spec: ModelSpec
    tensors: Mapping[tuple[str, int | None], Any]
    """By role and layer: GGUF tensors, those of norms and biases as float32 arrays."""
    thresholds: npt.NDArray[np.float32]
    """[L, E] of predictors; NaN where an FFN has none."""
    angles: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None]
    """Each layer's cosines and sines, both [P, rotated / 2]; None where nothing turns."""
    rotated: int
    """Dimensions of a head that turn, the first ones."""
    halves: bool
    """The pairs that turn are half of those apart, and not neighbours."""
    original_context: int
    """Tokens that the model was first trained for; counts with `attention_temperature` only."""
    rank: int
    """The largest of a predictor, 0 without."""
    transposed: bool
    """Down matrices have a row a neuron."""
    attention_share: float | None
    """The share of attention's outputs that predicted mode keeps, their matrix being transposed; None: it is not."""
    normed_predictors: bool
    """Predictors see the normalised input."""
    linear_predictors: bool
    """No relu is between their matrices."""


def window_of(spec: ModelSpec, context: int, layer: int) -> int:
    """Positions that a token of a layer sees, itself included."""
    return context if layer in spec.full_layers else min(spec.sliding_window or context, context)


def slots_of(spec: ModelSpec, context: int, layer: int) -> int:
    """Positions that the cache of a layer holds."""
    return min(context, window_of(spec, context, layer) + BLOCK)


def kept_inputs(spec: ModelSpec, share: float | None) -> int:
    """Of how many of its inputs attention's output is made at least, in predicted mode; 0 where no share is given."""
    return 0 if share is None else max(1, math.ceil(share * spec.heads * spec.head_dim))


def _own_shifts(threshold: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> Array:
    """The size up to which each neuron's up is shut: what its scale takes to the threshold."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a scale of 0 shuts any
        return np.ascontiguousarray(np.where(scale > 0, threshold / scale, np.inf), np.float32)


class Engine:
    """Runs steps.

    Attributes:
        buffers: arrays by name (parameters.py), and the counters.

    Raises:
        MemoryError: there is no room for the buffers.
    """

    def __init__(
        self, weights: Weights, *, threads: int, context: int, cache_type: str, as_llama_cpp: bool = False
    ) -> None:
        spec = weights.spec
        self._team = Team(threads)
        self._kinds: dict[str, Array] = {}
        self._shifts: list[Array] = []
        self._as_llama_cpp = as_llama_cpp
        try:
            self.buffers = self._buffers(weights, context, cache_type)
        except MemoryError:
            self._team.close()
            raise
        layers = np.array([self._layer(weights, index, context) for index in range(spec.layers)], LAYER)
        functions, output_norm = function_table(), weights.tensors["output_norm", None]
        embedding = self._tensor(weights.tensors["token_embd", None])
        self._kept = layers, functions, weights  # the record holds their addresses only
        self._parameters = new_parameters(
            functions=functions.ctypes.data, sync=self._team.sync.ctypes.data, eps=float(spec.norm_eps),
            layers=spec.layers, width=spec.width, neurons=spec.neurons, heads=spec.heads, kv_heads=spec.kv_heads,
            head_dim=spec.head_dim, rotated=weights.rotated, activation=ACTIVATIONS[spec.activation],
            transposed=weights.transposed,
            kept_inputs=kept_inputs(spec, weights.attention_share), normed_predictors=weights.normed_predictors,
            linear_predictors=weights.linear_predictors, experts=spec.experts,
            experts_per_token=max(1, spec.experts_per_token), router_normalized=spec.router_normalized,
            threads=threads, layer_table=layers.ctypes.data, halves=weights.halves, qk_norm=QK_NORMS[spec.qk_norm],
            head_wise=weights.halves or bool(spec.qk_norm) or spec.attention_temperature != 0,
            temperature=spec.attention_temperature, temperature_length=max(1, weights.original_context),
            attention_scale=spec.attention_scale or spec.head_dim**-0.5, attention_softcap=spec.attention_softcap,
            logit_scale=spec.logit_scale, logit_softcap=spec.logit_softcap, embedding_scale=spec.embedding_scale,
            residual_scale=spec.residual_scale,
            token_embd=embedding,
            output=embedding if spec.tied else self._tensor(weights.tensors["output", None]),
            output_norm=output_norm.ctypes.data, cache_type=self._kind(cache_type),
            cache_row=ggml.row_bytes(cache_type, spec.head_dim),
            **{name: self.buffers[name] for name in ("counts", *BUFFERS)},
        )  # fmt: skip

    @property
    def threads(self) -> int:
        """How many threads run a step."""
        return self._team.threads

    @property
    def counts(self) -> Array:
        """Records COUNTS [N, L], of all steps; they may be set to zero."""
        return self.buffers["counts"]

    def step(self, tokens_T: npt.NDArray[np.int64], position: int, mode: str, audit: bool, logits_OV: Array) -> None:
        """At most BLOCK tokens from a position on; writes the logits of the last ones, as many as there are rows."""
        parameters, block_T = self._parameters, np.ascontiguousarray(tokens_T)
        parameters["token_ids"], parameters["tokens"] = block_T.ctypes.data, len(block_T)
        parameters["position"], parameters["mode"], parameters["audit"] = position, MODES[mode], audit
        parameters["logits_out"], parameters["outputs"] = logits_OV.ctypes.data, len(logits_OV)
        self._team.run_on(parameters, steps)

    def close(self) -> None:
        """End the threads."""
        self._team.close()

    def _kind(self, type_name: str) -> Array:
        if type_name not in self._kinds:
            self._kinds[type_name] = type_record(type_name, as_llama_cpp=self._as_llama_cpp)
        return self._kinds[type_name]

    def _tensor(self, tensor: Any) -> Array:
        rows, columns = tensor.shape[-2:]
        size = ggml.row_bytes(tensor.type_name, columns)
        fields = (self._kind(tensor.type_name), tensor.raw.ctypes.data, rows, columns, size, rows * size)
        return np.array(fields, TENSOR)

    def _layer(self, weights: Weights, index: int, context: int) -> Array:
        layer, tensors = np.zeros((), LAYER), weights.tensors
        spec = weights.spec
        up_first = spec.activation in THRESHOLDED  # see ffn/activations.py
        ups, activations = (spec.up_thresholds, spec.thresholds) if up_first else (spec.thresholds, ())
        layer["index"], layer["shift"] = index, ups[index] if ups else 0.0
        layer["least"] = activations[index] if activations else 0.0
        if (UP_SCALE, index) in tensors:
            self._shifts.append(_own_shifts(layer["shift"], tensors[UP_SCALE, index]))
            layer["shifts"] = self._shifts[-1].ctypes.data
        layer["thresholds"] = weights.thresholds.ctypes.data + index * weights.thresholds.strides[0]
        layer["window"], layer["slots"] = (of(weights.spec, context, index) for of in (window_of, slots_of))
        for name, angles_PH in zip(("cos", "sin"), weights.angles[index] or (), strict=False):
            layer[name] = buffer_of(angles_PH)
        swapped = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"} if up_first else {}
        for role in NORMS:
            if (role, index) in tensors:
                layer[role] = tensors[role, index].ctypes.data
        for role in BIASED:
            if (f"{role}_bias", index) in tensors:
                layer[f"{swapped.get(role, role)}_bias"] = tensors[f"{role}_bias", index].ctypes.data
        for role in MATRICES:
            if (role, index) in tensors:
                layer[swapped.get(role, role)] = self._tensor(tensors[role, index])
        return layer

    def _buffers(self, weights: Weights, context: int, cache_type: str) -> dict[str, Array]:
        spec, threads = weights.spec, self._team.threads
        slots = max(slots_of(spec, context, layer) for layer in range(spec.layers))
        names = {each.type_name for (role, _), each in weights.tensors.items() if role not in VECTORS}
        chosen, heads, group = (
            max(1, spec.experts_per_token),
            spec.heads * spec.head_dim,
            -(-spec.heads // spec.kv_heads),
        )
        widest = max(spec.width, heads)
        made = new_buffers({
            "L": spec.layers, "D": spec.width, "F": spec.neurons, "E": max(1, spec.experts), "K": chosen,
            "R": max(1, weights.rank), "N": threads, "X": max(BLOCK, threads), "lines": max(BLOCK, chosen),
            "heads": heads, "kv": spec.kv_heads * spec.head_dim, "group": group, "scores": slots + 32,
            "cache_bytes": spec.kv_heads * slots * ggml.row_bytes(cache_type, spec.head_dim),
            "input_bytes": input_bytes(widest, names),
            "hidden_bytes": input_bytes(max(spec.neurons, weights.rank), names),
            "query_bytes": input_bytes(spec.head_dim, {"Q8_0"}), "scratch_bytes": SCRATCH_BYTES + 4 * widest,
        })  # fmt: skip
        made["share"][:] = 1
        made["counts"] = np.zeros((threads, spec.layers), COUNTS)
        return made
