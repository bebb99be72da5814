"""The part that all three targets share: a file's sources, its plan, and the tensors that every file has.

Shape suffixes: D model width, F neurons, R predictor rank, C columns.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...model.checkpoint import Checkpoint
from ...model.spec import ModelSpec
from ...model.tensor_names import FFN, PREDICTOR, UP_SCALE, Place, ffn_places, gguf_name, shape_of
from ...predictors.predictor import Predictor
from ..gguf.shards import GgufPlan
from ..gguf.tensor_plan import MatrixRows, Rows, Source, TensorPlan
from ..gguf.values import Value
from ..gguf.writer import GGUF_MAGIC
from ..metadata import model_keys, rope
from ..metadata.provenance import ModelInfo
from ..types.type_choice import TypeChoice
from ..vocabulary.vocabulary import Vocabulary
from .checkpoint_rows import plain, rope_index, scaled, transposed, vector
from .engine_form import EngineForm
from .neuron_order import Counts, Orders, in_order, order_tensors
from .predictor_source import PredictorSource
from .reglu_as_swiglu import Exponents


@dataclass(frozen=True, kw_only=True)
class Job:
    """The sources and choices from which a target plans a file."""

    out: Path
    """The file."""
    checkpoint: Checkpoint
    predictors: PredictorSource | None
    vocabulary: Vocabulary
    types: TypeChoice
    name: str
    """The model's, for `general.name`."""
    info: ModelInfo = field(default_factory=ModelInfo)
    orders: Orders = field(default_factory=dict)
    """The order in which each FFN's neurons are stored; empty: the checkpoint's."""
    counts: Counts = field(default_factory=dict)
    """How often each FFN's neurons fire, in the checkpoint's order, if that is known."""
    attention_share: float | None = None
    """The share of attention's outputs that predicted mode keeps; None: all of them, their matrix as it is."""
    vram_bytes: int | None = None
    """The memory of the GPU that PowerInfer is to use."""

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        return self.checkpoint.spec

    def general_keys(self, architecture: str) -> dict[str, Value]:
        """The `general.*` and `tsconvert.*` keys."""
        return model_keys.general_keys(self.spec, architecture, self.name, self.types.default) | self.info.keys()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A file that is ready to be written."""

    target: str
    architecture: str
    metadata: dict[str, Value]
    tensors: list[TensorPlan]
    notes: list[str] = field(default_factory=list)
    """For the user: what was capped, replaced, or will behave differently."""
    magic: bytes = GGUF_MAGIC
    companions: list[GgufPlan] = field(default_factory=list)
    """Files that belong beside it."""


def thresholds_left_out(spec: ModelSpec, engine: str) -> list[str]:
    """The note for an engine that has no thresholds, on a model whose activations have some."""
    if not any((*spec.thresholds, *spec.up_thresholds)):
        return []
    note = (
        f"{engine} has no thresholds: activations that the model cuts off (ffn_thresholds) count there, so more neurons"
        " fire, and the text is a little another one"
    )
    return [note]


class TensorTable:
    """The tensors of a plan, in the order in which they are added."""

    def __init__(self, job: Job, form: EngineForm, exponents: Exponents | None = None) -> None:
        self.job, self.form, self.exponents = job, form, exponents
        self.tensors: list[TensorPlan] = []

    def embedding(self) -> None:
        """The embedding, and before it the divisors of rope's frequencies if the model has them."""
        divisors = rope.frequency_divisors(self.job.spec)
        self.tensors += [TensorPlan.of(name, values) for name, values in divisors.items()]
        self.place(Place("token_embd"))

    def layer(self, layer: int, *, turned: Collection[str] = ()) -> None:
        """Attention and FFN of a layer; matrices of the roles ``turned`` transposed, as `ffn_down_t`."""
        for role in self.form.roles:
            if role in turned:
                self.transposed(role, layer)
            else:
                self.place(Place(role, layer))

    def head(self) -> None:
        """The last norm, and the output matrix unless it is the embedding."""
        self.place(Place("output_norm"))
        if not self.job.spec.tied:
            self.place(Place("output"))

    def place(self, place: Place) -> None:
        """The tensor of a role: of all experts, or of all roles whose rows the engine has in one."""
        whole = self.form.whole(place.role)
        if whole is not None:
            name, roles = whole[0].format(L=place.layer), whole[1]
            if place.role == roles[0]:
                rows = [rows for role in roles for rows in self.rows(Place(role, place.layer))]
                columns = rows[0].columns
                count = sum(each.rows for each in rows)
                self.add(name, (count, columns), self.job.types.matrix(name, columns), rows)
            return
        if place.role == UP_SCALE:
            self.tensors.append(TensorPlan.of(self.form.name(place), self._up_scale(place)))
            return
        spec, rows = self.job.spec, self.rows(place)
        stack = (spec.experts,) if spec.experts and place.role in FFN else ()
        name = self.form.name(Place(place.role, place.layer, 0 if stack else None))
        shape = shape_of(spec, place)
        plain = len(shape) == 1 or place.role == "router"
        type_name = "F32" if plain else self.job.types.matrix(name, shape[-1])
        self.add(name, (*stack, *shape), type_name, rows)

    def transposed(self, role: str, layer: int) -> None:
        """A matrix, of all experts, with one row an input: of down, a neuron."""
        places = ffn_places(self.job.spec, layer, role) if role in FFN else [Place(role, layer)]
        shape = shape_of(self.job.spec, places[0])[::-1]
        name = gguf_name(places[0], suffix="_t")
        stack = (len(places),) if self.job.spec.experts and role in FFN else ()
        rows = self.rows(Place(role, layer), transpose=True)
        self.add(name, (*stack, *shape), self.job.types.matrix(name, shape[-1]), rows)

    def rows(self, place: Place, *, transpose: bool = False) -> list[MatrixRows]:
        """The rows of a role in the engine's order, a matrix for each expert."""
        spec, checkpoint, orders = self.job.spec, self.job.checkpoint, self.job.orders
        role, factor = place.role, self.form.factors.get(place.role, 1.0)
        factor *= 2.0 ** self.exponents.of(role) if self.exponents else 1
        heads, order = self.form.heads(role), None
        if heads:
            order = rope_index(checkpoint.info(place).shape[0], heads, spec.rope_dim or spec.head_dim)
        if len(shape_of(spec, place)) == 1:
            if role in ("ffn_gate_bias", "ffn_up_bias"):
                order = orders.get((place.layer or 0, 0))
            return [vector(checkpoint, place, order, self.form.offset(role), factor)]
        if role in FFN:
            assert transpose or role != "ffn_down" or not orders, "the rows of down are no neurons"
            rows_of = transposed if transpose else plain
            places = ffn_places(spec, place.layer or 0, role)
            found = [rows_of(checkpoint, each, orders.get((each.layer or 0, each.expert or 0))) for each in places]
        else:
            found = [transposed(checkpoint, place) if transpose else plain(checkpoint, place, order)]
        return found if factor == 1 else [scaled(rows, factor) for rows in found]

    def _up_scale(self, place: Place) -> npt.NDArray[np.float32]:
        """The scales of a layer's ups, [F] or [E, F], each FFN's in the order of its neurons."""
        scale_EF = self.job.checkpoint.array(place).reshape(-1, self.job.spec.neurons)
        rows = [in_order(row_F, self.job.orders, place.layer or 0, expert) for expert, row_F in enumerate(scale_EF)]
        return np.concatenate(rows).reshape(shape_of(self.job.spec, place))

    def predictors(self, layer: int, ranks: Sequence[int], predictor_of: Callable[[int, int], Predictor]) -> None:
        """fc1 [R, D] and fc2 [F, R] of a layer; experts stacked, smaller ranks padded with zeros, which add nothing.

        Args:
            ranks: the experts'.
            predictor_of: takes layer and expert.
        """
        spec, orders, rank = self.job.spec, self.job.orders, max(ranks)
        stack = (spec.experts,) if spec.experts else ()
        for part, shape in zip(PREDICTOR, ((rank, spec.width), (spec.neurons, rank)), strict=True):
            name = gguf_name(ffn_places(spec, layer, part)[0])

            def rows(part: str = part, shape: tuple[int, int] = shape) -> Iterator[Rows]:
                for expert, own_rank in enumerate(ranks):
                    rows_RC = np.zeros(shape, np.float32)
                    if own_rank:
                        own = predictor_of(layer, expert)
                        matrix = own.fc1_RD if part == "fc1" else in_order(own.fc2_FR, orders, layer, expert)
                        rows_RC[: matrix.shape[0], : matrix.shape[1]] = matrix
                    yield rows_RC

            self.add(name, (*stack, *shape), self.job.types.predictor_matrix(name, shape[-1]), rows)

    def order(self) -> None:
        """The permutation of each layer's neurons, if they are not in the checkpoint's order."""
        self.tensors += order_tensors(self.job.spec, self.job.orders)

    def add(self, name: str, shape: tuple[int, ...], type_name: str, source: Source) -> None:
        """Any tensor."""
        self.tensors.append(TensorPlan(name=name, shape=shape, type_name=type_name, source=source))
