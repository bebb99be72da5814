"""Where each tensor of a GGUF file comes from: the source's rows in the order in which the file must have them.

Written apart from the exporter (quant/targets/checkpoint_rows.py, neuron_order.py) and from the specification alone, so
that a mistake there is found here. Shape suffixes: D model width, F neurons, R rows, C columns, S head size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.files.dtypes import to_float32
from ...model.files.gguf.file import GgufFile
from ...model.spec import ModelSpec
from ...model.tensor_names import ATTENTION, FFN, Place, ffn_places, gguf_name, shape_of

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Orders = Mapping[tuple[int, int], Index]
"""(layer, expert) -> for each neuron of the file, its number in the source."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A tensor that the file must have."""

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    places: tuple[Place, ...]
    """One, or one an expert; the outermost dimension of the file's tensor."""
    transposed: bool = False
    factor: float = 1.0
    """The file's values over the source's."""


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
    return {role: 2.0**exponent for role, exponent in exponents.items()}


def expected_tensors(spec: ModelSpec, dialect: str, factors: Mapping[str, float] | None = None) -> Iterator[Expected]:
    """What a file of a dialect (`llama.cpp`, `powerinfer`, `sparse`) holds of a model, predictors left out."""
    for expected in _unscaled(spec, dialect):
        yield replace(expected, factor=(factors or {}).get(expected.role, 1.0))


def _unscaled(spec: ModelSpec, dialect: str) -> Iterator[Expected]:
    yield _expected(spec, "token_embd")
    for layer in range(spec.layers):
        for role in (*ATTENTION, "ffn_norm", *(("router",) if spec.experts else ()), *FFN):
            yield _expected(spec, role, layer, transposed=role == "ffn_down" and dialect != "llama.cpp")
    yield _expected(spec, "output_norm")
    if not spec.tied:
        yield _expected(spec, "output")
    elif dialect == "powerinfer":
        yield replace(_expected(spec, "output"), places=(Place("token_embd"),))


def _expected(spec: ModelSpec, role: str, layer: int | None = None, *, transposed: bool = False) -> Expected:
    places = [Place(role)] if layer is None else ffn_places(spec, layer, role) if role in FFN else [Place(role, layer)]
    shape = shape_of(spec, places[0])
    stack = (len(places),) if role in FFN and spec.experts else ()
    return Expected(
        name=gguf_name(places[0], suffix="_t" if transposed else ""), role=role, layer=layer, places=tuple(places),
        shape=(*stack, *(shape[::-1] if transposed else shape)), transposed=transposed,
    )  # fmt: skip


class SourceRows:
    """The rows of one matrix of a checkpoint, that of ``expert``, in the file's order."""

    def __init__(self, checkpoint: Checkpoint, expected: Expected, expert: int, orders: Orders) -> None:
        place = expected.places[expert]
        self._checkpoint, self._place = checkpoint, place
        spec, order = checkpoint.spec, orders.get((expected.layer or 0, expert))
        self._index: Index | None = None
        self._whole: Floats | None = None
        self.columns, self._factor = expected.shape[-1], np.float32(expected.factor)
        if expected.transposed:
            whole_FD = checkpoint.array(place).T
            self._whole = whole_FD if order is None else whole_FD[order]
        elif expected.role in ("attn_q", "attn_k"):
            self._index = rope_order(spec.heads if expected.role == "attn_q" else spec.kv_heads, spec.head_dim)
        elif expected.role in ("ffn_gate", "ffn_up"):
            self._index = order
        elif expected.role == "ffn_down" and order is not None:
            self._whole = checkpoint.array(place)[:, order]

    def __call__(self, start: int, stop: int) -> Floats:
        """Rows ``start`` to ``stop``, [R, C]."""
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[start:stop]) * self._factor
        dtype = self._checkpoint.info(self._place).dtype
        index = slice(start, stop) if self._index is None else self._index[start:stop]
        picked = np.ascontiguousarray(self._checkpoint.rows(self._place, index))
        values_RC = to_float32(picked.reshape(-1), dtype).reshape(-1, self.columns)
        return values_RC if self._factor == 1 else values_RC * self._factor


def rope_order(heads: int, size: int) -> Index:
    """For each row of q or k in a GGUF file its row in Hugging Face's layout: 2i is i, and 2i + 1 is i + half."""
    within_S = np.arange(size).reshape(2, size // 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * size + within_S[None, :]).reshape(-1)
