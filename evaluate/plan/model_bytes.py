"""What a model weighs as a GGUF file, tensor by tensor, and what one token reads of it.

At one token a time a processor waits for memory, so bytes are time. A token reads the attention, the output head and
the router once; of the FFNs of its experts, with D the model width, F an FFN's neurons, R a predictor's rank:

    dense      all 3 F rows
    exact      F gate rows; an up row where the gate is positive; a down row where the neuron fires
    predicted  the predictor, R (D + F) weights; a gate row where a neuron is predicted, an up row where besides the
               gate is positive, a down row where it fires

Several tokens at once (a batch of sequences, a block of a prompt) read what any of them needs. If each of B tokens
takes K of E experts, and a neuron fires for a share d of the tokens, independently of the others, they need

    E (1 - (1 - K/E)^B)  experts,  and of a matrix  1 - (1 - d)^b  of the rows,

with b the tokens that reach the same expert. Neurons are not independent, the same ones fire again and again: the true
union is smaller, and `tsconvert profile` measures it.
"""

import math
from dataclasses import dataclass, field, replace

from ...common.errors import TsconvertError
from ...model.files.gguf import ggml
from ...model.spec import ModelSpec
from ...model.tensor_names import FFN, UP_SCALE, Place, gguf_name, model_places, shape_of
from ...predictors.cost import Rates
from ...quant.types import mixes
from ...quant.types.type_choice import TypeChoice

# neurons whose gate is positive over those that fire: 1.66 at 21 %, 1.9 at 12 % (SmolLM2, recovered)
_GATE_OF_FIRED = 1.8
_PREDICTED_OF_FIRED = 1.2
_HIT = 0.8  # of those that fire, those that are predicted; energy 0.97 to 0.98


@dataclass(frozen=True, kw_only=True)
class FileBytes:
    """Bytes of a GGUF file, by what reads them."""

    embedding: int
    """A token reads one row of these, unless it is the output head as well."""
    output: int
    """The head; 0 where it is the embedding."""
    attention: int
    """With norms and routers."""
    gate: int
    """Bytes of all layers and experts."""
    up: int
    down: int
    predictors: int
    parts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Bytes of each type in each of these."""

    @property
    def types(self) -> dict[str, int]:
        """Bytes of each type."""
        found: dict[str, int] = {}
        for kinds in self.parts.values():
            for kind, size in kinds.items():
                found[kind] = found.get(kind, 0) + size
        return found

    @property
    def total(self) -> int:
        """Bytes of all weights; metadata comes on top, a few MB."""
        ffn = self.gate + self.up + self.down
        return self.embedding + self.output + self.attention + ffn + self.predictors


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one step reads of one part of the file."""

    types: dict[str, float]
    """Bytes of each type."""
    rows: float = 0.0
    """Where rows are read here and there, how many; 0 where they lie one behind the other."""

    @property
    def size(self) -> float:
        """Bytes."""
        return sum(self.types.values())


@dataclass(frozen=True, kw_only=True)
class TokenBytes:
    """What one step reads, part by part."""

    reads: tuple[Read, ...]

    @property
    def streamed(self) -> float:
        """Bytes that lie one behind the other."""
        return sum(read.size for read in self.reads if not read.rows)

    @property
    def total(self) -> float:
        """Bytes, rows here and there included."""
        return self.streamed + sum(read.size for read in self.reads if read.rows)


def file_bytes(spec: ModelSpec, type_name: str, rank: int = 0, predictor_type: str = "F16") -> FileBytes:
    """The bytes of ``spec`` exported as ``type_name``.

    Args:
        type_name: a mix (`Q4_K_M`) or a type.
        rank: of every FFN's predictor; 0 for none.

    Raises:
        TsconvertError: there is no such type.
    """
    model = mixes.Model(
        layers=spec.layers, heads=spec.heads, kv_heads=spec.kv_heads, experts=spec.experts, tied=spec.tied
    )
    try:
        return _file_bytes(spec, TypeChoice(type_name, predictor_type, model=model), rank)
    except TsconvertError:  # of a type that needs an importance matrix
        model = replace(model, importance=True)
        return _file_bytes(spec, TypeChoice(type_name, predictor_type, model=model), rank)


def _file_bytes(spec: ModelSpec, choice: TypeChoice, rank: int) -> FileBytes:
    parts: dict[str, dict[str, int]] = {name: {} for name in _NAMES}
    for place in model_places(spec):
        if place.expert:
            continue
        kind, size = _stored(spec, place, choice)
        size *= spec.ffns if place.role in FFN else 1
        types = parts[_PARTS.get(place.role, "attention")]
        types[kind] = types.get(kind, 0) + size
    if rank:
        fc1 = choice.predictor_matrix("blk.0.fc1.weight", spec.width)
        fc2 = choice.predictor_matrix("blk.0.fc2.weight", rank)
        size = rank * ggml.row_bytes(fc1, spec.width) + spec.neurons * ggml.row_bytes(fc2, rank)
        parts["predictors"] = {choice.predictor: spec.layers * spec.ffns * size}
    return FileBytes(**{name: sum(types.values()) for name, types in parts.items()}, parts=parts)


_NAMES = ("embedding", "output", "attention", "gate", "up", "down", "predictors")
_PARTS = {"token_embd": "embedding", "output": "output", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}


def _stored(spec: ModelSpec, place: Place, choice: TypeChoice) -> tuple[str, int]:
    """Type and bytes of one tensor, of one expert."""
    transposed = place.role == "ffn_down" and spec.sparse
    *rows, columns = shape_of(spec, place)[:: -1 if transposed else 1]
    plain = not rows or place.role in ("router", UP_SCALE)
    kind = "F32" if plain else choice.matrix(gguf_name(place, suffix="_t" if transposed else ""), columns)
    return kind, math.prod(rows) * ggml.row_bytes(kind, columns)


def typical_rates(density: float, predicted: float | None = None) -> Rates:
    """The shares of neurons that go with a share ``density`` that fires, as in recovered models.

    Args:
        predicted: share that predictors name; None takes 1.2 times ``density``.
    """
    named = min(1.0, _PREDICTED_OF_FIRED * density) if predicted is None else predicted
    return Rates(
        gate=min(1.0, _GATE_OF_FIRED * density), fired=density, predicted=named, predicted_gate=min(named, density),
        hit=min(named, _HIT * density),
    )  # fmt: skip


def token_bytes(spec: ModelSpec, size: FileBytes, mode: str, rates: Rates, *, batch: int = 1) -> TokenBytes:
    """What one step of ``batch`` tokens reads in ``mode``, the key-value cache left out."""
    experts, tokens = experts_read(spec, batch)
    rows = spec.layers * spec.ffns * spec.neurons * experts

    def part(name: str, share: float = 1.0, *, ffn: bool = True) -> Read:
        read = experts * union(share, tokens) if ffn else 1.0
        types = {kind: whole * read for kind, whole in size.parts[name].items()}
        return Read(types=types, rows=rows * union(share, tokens) if share < 1 else 0.0)

    reads = [part("attention", ffn=False), part("output" if size.output else "embedding", ffn=False)]
    if mode == "dense":
        reads += [part("gate"), part("up"), part("down")]
    elif mode == "exact":
        reads += [part("gate"), part("up", rates.gate), part("down", rates.fired)]
    else:
        shares = {"gate": rates.predicted, "up": rates.predicted_gate, "down": rates.hit}
        reads += [part("predictors"), *(part(name, share) for name, share in shares.items())]
    return TokenBytes(reads=tuple(reads))


def experts_read(spec: ModelSpec, batch: int) -> tuple[float, float]:
    """Share of the FFNs that ``batch`` tokens read, and the tokens that each of those sees."""
    if not spec.experts:
        return 1.0, float(batch)
    share = spec.experts_per_token / spec.experts
    read = union(share, batch)
    return read, batch * share / read


def union(share: float, tokens: float) -> float:
    """Share that at least one of ``tokens`` needs where each needs ``share``, independently."""
    return float(1.0 - (1.0 - share) ** tokens)


def cache_bytes(spec: ModelSpec, tokens: int) -> int:
    """Keys and values of ``tokens`` tokens, F16."""
    return 2 * 2 * spec.layers * spec.kv_heads * spec.head_dim * min(tokens, spec.sliding_window or tokens)
