"""The part that all three targets share: a file's sources, its plan, and the tensors that every file has.

Shape suffixes: D model width, F neurons.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ...model.checkpoint import Checkpoint
from ...model.spec import ModelSpec
from ...model.tensor_names import Place, ffn_places, gguf_name, shape_of
from ..gguf.shards import GgufPlan
from ..gguf.tensor_plan import MatrixRows, Source, TensorPlan
from ..gguf.values import Value
from ..gguf.writer import GGUF_MAGIC
from ..metadata import model_keys, rope
from ..metadata.provenance import ModelInfo
from ..types.type_choice import TypeChoice
from ..vocabulary.vocabulary import Vocabulary
from .checkpoint_rows import plain, rope_permuted, scaled, transposed
from .neuron_order import Counts, Orders, order_tensors
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

    def __init__(self, job: Job, exponents: Exponents | None = None) -> None:
        self.job, self.exponents = job, exponents
        self.tensors: list[TensorPlan] = []

    def embedding(self) -> None:
        """The embedding, and before it the divisors of Llama 3's rope scaling if the model has it."""
        divisors = rope.frequency_divisors(self.job.spec)
        if divisors is not None:
            self.add(rope.FREQS, divisors.shape, "F32", lambda: [divisors[None, :]])
        self.matrix(Place("token_embd"))

    def layer(self, layer: int, *, transpose_down: bool) -> None:
        """Attention and FFN of a layer; the down matrix transposed, as `ffn_down_t`, or as it is."""
        spec = self.job.spec
        self.float32(Place("attn_norm", layer))
        self.matrix(Place("attn_q", layer), heads=spec.heads)
        self.matrix(Place("attn_k", layer), heads=spec.kv_heads)
        self.matrix(Place("attn_v", layer))
        self.matrix(Place("attn_output", layer))
        self.float32(Place("ffn_norm", layer))
        if spec.experts:
            self.float32(Place("router", layer))
        self.ffn(layer, "ffn_gate")
        self.ffn(layer, "ffn_up")
        self.ffn(layer, "ffn_down", transpose=transpose_down)

    def head(self) -> None:
        """The last norm, and the output matrix unless it is the embedding."""
        self.float32(Place("output_norm"))
        if not self.job.spec.tied:
            self.matrix(Place("output"))

    def float32(self, place: Place) -> None:
        """A norm or a router, always F32."""
        shape = shape_of(self.job.spec, place)
        self.add(gguf_name(place), shape, "F32", [self._scaled(plain(self.job.checkpoint, place), place)])

    def matrix(self, place: Place, *, heads: int = 0) -> None:
        """A weight matrix, its rows permuted for ggml's rope if it has ``heads``."""
        name, shape, checkpoint = gguf_name(place), shape_of(self.job.spec, place), self.job.checkpoint
        rows = rope_permuted(checkpoint, place, heads) if heads else plain(checkpoint, place)
        self.add(name, shape, self.job.types.matrix(name, shape[-1]), [rows])

    def ffn(self, layer: int, role: str, *, transpose: bool = False) -> None:
        """An FFN's matrix, of all experts stacked; transposed under the name with `_t`."""
        orders = self.job.orders
        assert transpose or role != "ffn_down" or not orders, "the rows of down are no neurons"
        places = ffn_places(self.job.spec, layer, role)
        rows_of = transposed if transpose else plain
        source = [
            self._scaled(rows_of(self.job.checkpoint, place, orders.get((layer, place.expert or 0))), place)
            for place in places
        ]
        shape = shape_of(self.job.spec, places[0])
        shape = shape[::-1] if transpose else shape
        name = gguf_name(places[0], suffix="_t" if transpose else "")
        stack = (len(places),) if self.job.spec.experts else ()
        self.add(name, (*stack, *shape), self.job.types.matrix(name, shape[-1]), source)

    def order(self) -> None:
        """The permutation of each layer's neurons, if they are not in the checkpoint's order."""
        self.tensors += order_tensors(self.job.spec, self.job.orders)

    def _scaled(self, rows: MatrixRows, place: Place) -> MatrixRows:
        exponent = self.exponents.of(place.role) if self.exponents else 0
        return scaled(rows, exponent) if exponent else rows

    def add(self, name: str, shape: tuple[int, ...], type_name: str, source: Source) -> None:
        """Any tensor."""
        self.tensors.append(TensorPlan(name=name, shape=shape, type_name=type_name, source=source))
