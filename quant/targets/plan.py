"""What the three targets share: the plan of a file, and the keys and tensors that all of them write alike.

Shape suffixes: D model width, F neurons.
"""

from dataclasses import dataclass, field

from ...model.checkpoint import Checkpoint
from ...model.spec import ModelSpec
from ...model.tensor_names import Place, ffn_places, gguf_name, shape_of
from ..gguf import sources
from ..gguf.model_info import ModelInfo
from ..gguf.writer import GGUF_MAGIC, Companion, TensorPlan, Value, f32, text, u32
from ..types.type_choice import TypeChoice
from ..vocabulary.vocabulary import Vocabulary
from . import rope
from .neuron_order import Counts, Orders, columns_in_order, order_tensors, rows_in_order
from .predictor_source import PredictorSource

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION (ggml.h)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a target makes a file of."""

    checkpoint: Checkpoint
    predictors: PredictorSource | None
    vocabulary: Vocabulary
    types: TypeChoice
    name: str
    """The model's, for `general.name`."""
    info: ModelInfo = field(default_factory=ModelInfo)
    orders: Orders = field(default_factory=dict)
    """In which order each FFN's neurons are stored; empty: as in the checkpoint."""
    counts: Counts = field(default_factory=dict)
    """How often each FFN's neurons fire, in the checkpoint's order, if that is known."""
    vram_bytes: int | None = None
    """Of the GPU that PowerInfer is to use."""

    @property
    def spec(self) -> ModelSpec:
        """The model's."""
        return self.checkpoint.spec


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A file that is ready to be written."""

    target: str
    architecture: str
    metadata: dict[str, Value]
    tensors: list[TensorPlan]
    notes: list[str] = field(default_factory=list)
    """What the user should know: what was capped, replaced, or will behave differently."""
    magic: bytes = GGUF_MAGIC
    companions: list[Companion] = field(default_factory=list)
    info: ModelInfo = field(default_factory=ModelInfo)


def usual_target(spec: ModelSpec) -> str:
    """The target of a model, where none is asked for."""
    return "sparse" if spec.sparse else "llama.cpp"


def general_keys(job: Job, architecture: str) -> dict[str, Value]:
    """The `general.*` keys."""
    return {
        "general.architecture": text(architecture),
        "general.type": text("model"),
        "general.name": text(job.name),
        "general.size_label": text(size_label(job.spec)),
        "general.file_type": u32(file_type(job.types.default)),
        "general.quantization_version": u32(QUANTIZATION_VERSION),
    } | job.info.keys()


def model_keys(spec: ModelSpec, architecture: str, context: int) -> dict[str, Value]:
    """The keys of a Llama-like model's shape, rope scaling left out."""
    counts = {
        "context_length": context,
        "embedding_length": spec.width,
        "block_count": spec.layers,
        "feed_forward_length": spec.neurons,
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "rope.dimension_count": spec.head_dim,
    }
    keys = {f"{architecture}.{name}": u32(count) for name, count in counts.items()}
    keys[f"{architecture}.attention.layer_norm_rms_epsilon"] = f32(spec.norm_eps)
    keys[f"{architecture}.rope.freq_base"] = f32(spec.rope_theta)
    return keys


def wide_keys(spec: ModelSpec, architecture: str) -> dict[str, Value]:
    """The keys that llama.cpp added later: head size, vocabulary, experts."""
    counts = {
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "vocab_size": spec.vocab,
    }
    if spec.experts:
        counts |= {"expert_count": spec.experts, "expert_used_count": spec.experts_per_token}
    return {f"{architecture}.{name}": u32(count) for name, count in counts.items()}


def capped_context(spec: ModelSpec, engine: str) -> tuple[int, list[str]]:
    """The context length for an engine without a sliding window, and the note if it had to be capped."""
    if spec.sliding_window is None or spec.sliding_window >= spec.context:
        return spec.context, []
    note = (
        f"context length capped at the sliding window, {spec.sliding_window} of {spec.context} tokens: {engine} attends"
        " to everything, which is the same only up to there"
    )
    return spec.sliding_window, [note]


def size_label(spec: ModelSpec) -> str:
    """As gguf-py's size_label: `7B`, or `8x7B` for experts."""
    import gguf

    expert = 3 * spec.width * spec.neurons * spec.layers if spec.experts else 0
    total = spec.parameters
    return str(gguf.size_label(total, total - expert * spec.experts, expert, spec.experts))


def file_type(type_name: str) -> int:
    """enum llama_ftype's number for a file that is mostly ``type_name``."""
    import gguf

    names = (
        ("ALL_F32",)
        if type_name == "F32"
        else (f"MOSTLY_{type_name}", f"MOSTLY_{type_name}_M", f"MOSTLY_{type_name}_S")
    )
    types = gguf.LlamaFileType.__members__
    return int(next((types[name] for name in names if name in types), gguf.LlamaFileType.GUESSED))


class TensorTable:
    """The tensors of a plan, in the order in which they are added."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tensors: list[TensorPlan] = []

    def vector(self, place: Place) -> None:
        """A norm's weights, always F32."""
        shape = shape_of(self.job.spec, place)
        self.add(gguf_name(place), shape, "F32", sources.plain(self.job.checkpoint, place))

    def matrix(self, place: Place, *, heads: int = 0) -> None:
        """A weight matrix, its rows permuted for ggml's rope if it has ``heads``."""
        name, shape, checkpoint = gguf_name(place), shape_of(self.job.spec, place), self.job.checkpoint
        chunks = sources.rope_permuted(checkpoint, place, heads) if heads else sources.plain(checkpoint, place)
        self.add(name, shape, self.job.types.matrix(name, shape[-1]), chunks)

    def ffn(self, layer: int, role: str, *, transpose: bool = False) -> None:
        """An FFN's matrix, of all experts stacked; transposed under the name with `_t`."""
        places = ffn_places(self.job.spec, layer, role)
        make: sources.Maker = sources.transposed if transpose else sources.plain
        chunks = sources.stacked([self._ffn_rows(place, transpose, make) for place in places])
        shape = shape_of(self.job.spec, places[0])
        shape = shape[::-1] if transpose else shape
        name = gguf_name(places[0], suffix="_t" if transpose else "")
        stack = (len(places),) if self.job.spec.experts else ()
        self.add(name, (*stack, *shape), self.job.types.matrix(name, shape[-1]), chunks)

    def _ffn_rows(self, place: Place, transpose: bool, make: sources.Maker) -> sources.Chunks:
        order_F = self.job.orders.get((place.layer or 0, place.expert or 0))
        if order_F is None:
            return make(self.job.checkpoint, place)
        if place.role == "ffn_down":
            return columns_in_order(self.job.checkpoint, place, order_F, transpose=transpose)
        return rows_in_order(self.job.checkpoint, place, order_F)

    def order(self) -> None:
        """The permutation of each layer's neurons, if they are not in the checkpoint's order."""
        self.tensors += order_tensors(self.job.spec, self.job.orders)

    def attention(self, layer: int) -> None:
        """Norm and matrices of one layer's attention."""
        spec = self.job.spec
        self.vector(Place("attn_norm", layer))
        self.matrix(Place("attn_q", layer), heads=spec.heads)
        self.matrix(Place("attn_k", layer), heads=spec.kv_heads)
        self.matrix(Place("attn_v", layer))
        self.matrix(Place("attn_output", layer))

    def router(self, layer: int) -> None:
        """The router of a layer with experts, always F32."""
        place = Place("router", layer)
        shape = shape_of(self.job.spec, place)
        self.add(gguf_name(place), shape, "F32", sources.plain(self.job.checkpoint, place))

    def rope_frequencies(self) -> None:
        """The divisors of Llama 3's rope scaling, if the model has it."""
        divisors = rope.frequency_divisors(self.job.spec)
        if divisors is not None:
            rows = divisors[None, :]
            self.add(rope.FREQS, divisors.shape, "F32", lambda: [rows])

    def add(self, name: str, shape: tuple[int, ...], type_name: str, chunks: sources.Chunks) -> None:
        """Any tensor."""
        self.tensors.append(TensorPlan(name=name, shape=shape, type_name=type_name, chunks=chunks))
