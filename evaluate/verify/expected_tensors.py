"""Where each tensor of a GGUF file comes from: the source's rows in the order in which the file must have them.

Written apart from the exporter (quant/targets/checkpoint_rows.py, neuron_order.py) and from the specification alone, so
that a mistake there is found here. Shape suffixes: D model width, F neurons, R rows, C columns, S head size.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.families import FAMILIES
from ...model.families.family import Gguf
from ...model.files.dtypes import to_float32
from ...model.files.gguf.file import SPARSE, GgufFile
from ...model.spec import ModelSpec
from ...model.tensor_names import FFN, UP_SCALE, Place, ffn_places, gguf_name, shape_of
from ...quant.targets.engine_form import engine_form

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Orders = Mapping[tuple[int, int], Index]
"""(layer, expert) -> for each neuron of the file, its number in the source."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a tensor of the file that are one matrix (or vector) of the source."""

    place: Place
    rows: int
    """How many; a vector is one row."""
    factor: float = 1.0
    """The file's values over the source's, once ``offset`` is added."""
    offset: float = 0.0
    heads: int = 0
    """Heads within which halves become neighbours; 0: the order is the source's."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A tensor that the file must have."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    parts: tuple[Part, ...]
    """One, or one an expert, or those of a matrix that the source has in several."""
    transposed: bool = False

    def first_row(self, index: int) -> int:
        """The row of the file at which a part begins."""
        return sum(part.rows for part in self.parts[:index])


def factors_of(file: GgufFile) -> dict[str, float]:
    """Role -> factor on its tensors, of a ReGLU model in a file for llama.cpp: relu(g) stored as silu(K g) / K.

    Raises:
        TsconvertError: the factors do not cancel.
    """
    log = {name: file.metadata.get(f"tsconvert.reglu_as_swiglu.{name}") for name in ("sharpness", "norm", "up", "down")}
    if all(value is None for value in log.values()):
        return {}
    k, a, b, c = (value if isinstance(value, int) else 0 for value in log.values())
    if a != k + b + c or k < 1:
        raise TsconvertError(f"{file.path}: the factors of its FFNs do not cancel ({log}); export it again")
    exponents = {"ffn_norm": -a, "router": a, "ffn_gate": a + k, "ffn_up": b, "ffn_down": c}
    exponents |= {"ffn_gate_bias": k, "ffn_up_bias": b - a}
    return {role: 2.0**exponent for role, exponent in exponents.items()}


def turned_roles(file: GgufFile, dialect: str) -> list[str]:
    """The roles whose matrices a file of a dialect has transposed."""
    by_inputs = f"{SPARSE}.attention.output_share" in file.metadata
    return ["ffn_down"] * (dialect != "llama.cpp") + ["attn_output"] * (dialect == "sparse" and by_inputs)


def expected_tensors(
    spec: ModelSpec, dialect: str, factors: Mapping[str, float], turned: Collection[str]
) -> Iterator[Expected]:
    """What a file of a dialect (`llama.cpp`, `powerinfer`, `sparse`) holds of a model, predictors left out.

    Args:
        factors: what `factors_of` gives.
        turned: what `turned_roles` gives.
    """
    gguf = {"llama.cpp": FAMILIES[spec.family].gguf, "powerinfer": Gguf(architecture="llama")}.get(dialect)
    form = engine_form(spec, gguf, dialect)

    def part(place: Place, rows: int) -> Part:
        factor = form.factors.get(place.role, 1.0) * factors.get(place.role, 1.0)
        heads = {"attn_q": spec.heads, "attn_k": spec.kv_heads}.get(place.role[:6], 0) if form.permuted else 0
        if place.role.endswith("_norm"):
            heads = min(heads, 1) if spec.qk_norm == "head" else heads
            heads = heads if place.role in ("attn_q_norm", "attn_k_norm") else 0
        offset = spec.norm_offset if place.role.endswith("norm") else 0.0
        return Part(place=place, rows=rows, factor=factor, offset=offset, heads=heads)

    def expected(places: list[Place], *, transposed: bool = False) -> Expected:
        shapes = [shape_of(spec, place)[:: -1 if transposed else 1] for place in places]
        role, layer = places[0].role, places[0].layer
        counts = [shape[0] if len(shape) > 1 else 1 for shape in shapes]
        name, shape = gguf_name(places[0], suffix="_t" if transposed else ""), shapes[0]
        if role in form.names:
            name = form.names[role].format(L=layer)
        if spec.experts and role in FFN:
            shape = (len(places), *shape)
        elif len(places) > 1:
            name, shape = (
                next(each for each in form.fused if role in form.fused[each]).format(L=layer),
                (sum(counts), shape[1]),
            )
        parts = tuple(part(place, rows) for place, rows in zip(places, counts, strict=True))
        return Expected(name=name, shape=shape, layer=layer, parts=parts, transposed=transposed)

    yield expected([Place("token_embd")])
    for layer in range(spec.layers):
        for role in form.roles:
            whole = next((roles for roles in form.fused.values() if role in roles), None)
            if whole is None:
                places = ffn_places(spec, layer, role) if role in FFN else [Place(role, layer)]
                yield expected(places, transposed=role in turned)
            elif role == whole[0]:
                yield expected([Place(each, layer) for each in whole])
    yield expected([Place("output_norm")])
    if not spec.tied:
        yield expected([Place("output")])
    elif dialect == "powerinfer":
        embedding = expected([Place("token_embd")])
        yield replace(embedding, name=gguf_name(Place("output")))


class SourceRows:
    """The rows of one part of a tensor in the file's order and with its values."""

    def __init__(self, checkpoint: Checkpoint, expected: Expected, number: int, orders: Orders) -> None:
        part = expected.parts[number]
        self._checkpoint, self._place = checkpoint, part.place
        role, order = part.place.role, orders.get((expected.layer or 0, part.place.expert or 0))
        self._index: Index | None = None
        self._whole: Floats | None = None
        self.columns, self._factor, self._offset = expected.shape[-1], np.float32(part.factor), np.float32(part.offset)
        if part.heads:
            size = checkpoint.info(part.place).shape[0] // part.heads
            self._index = rope_order(part.heads, size, checkpoint.spec.rope_dim or size)
        elif role in ("ffn_gate", "ffn_up", "ffn_gate_bias", "ffn_up_bias"):
            self._index = order
        if expected.transposed:
            whole_FD = checkpoint.array(part.place).T
            self._whole = whole_FD if order is None or role not in FFN else whole_FD[order]
        elif role == "ffn_down" and order is not None:
            self._whole = checkpoint.array(part.place)[:, order]
        elif role == UP_SCALE:
            scale_EF = checkpoint.array(part.place).reshape(-1, self.columns)
            pairs = ((row_F, orders.get((part.place.layer or 0, expert))) for expert, row_F in enumerate(scale_EF))
            self._whole = np.stack([row_F if order is None else row_F[order] for row_F, order in pairs])
        elif len(checkpoint.info(part.place).shape) == 1:
            values = checkpoint.array(part.place)
            self._whole = (values if self._index is None else values[self._index])[None]

    def __call__(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, [R, C]."""
        if self._whole is not None:
            return (np.ascontiguousarray(self._whole[start:stop]) + self._offset) * self._factor
        dtype = self._checkpoint.info(self._place).dtype
        index = slice(start, stop) if self._index is None else self._index[start:stop]
        picked = np.ascontiguousarray(self._checkpoint.rows(self._place, index))
        values_RC = to_float32(picked.reshape(-1), dtype).reshape(-1, self.columns)
        return values_RC if self._factor == 1 else values_RC * self._factor


def rope_order(heads: int, size: int, rotated: int) -> Index:
    """For each row of q or k in a GGUF file its row in Hugging Face's layout: 2i is i, and 2i + 1 is i + half.

    Args:
        rotated: the dimensions of a head, of its ``size``, that turn; the others stay.
    """
    within_S = np.arange(size)
    within_S[:rotated] = within_S[:rotated].reshape(2, rotated // 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * size + within_S[None, :]).reshape(-1)
