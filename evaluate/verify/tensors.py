"""Every tensor of a GGUF file against its source, a few rows at a time.

Shape suffixes: R rows, C columns, D model width, F neurons.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ...model.checkpoint import Checkpoint
from ...model.files.gguf import ggml
from ...model.files.gguf.file import GgufFile, GgufTensor
from ...model.tensor_names import PREDICTOR, Place, ffn_places, gguf_name
from ...quant.targets.predictor_source import PredictorSource
from .expected_tensors import Expected, Floats, Orders, SourceRows
from .type_bounds import FLOAT_TYPES, compare_rows

_PIECE_VALUES = 1 << 22
Rows = Callable[[int, int], Floats]


@dataclass(frozen=True, kw_only=True)
class TensorResult:
    """How one tensor compares with its source."""

    name: str
    type_name: str = ""
    worst: float = 0.0
    """Largest error as a share of what the type allows it; 0 where the bits are the same."""
    error: float = 0.0
    """What storing it cost: |stored - source| / |source|, over the whole tensor (root of the sums of squares)."""
    problem: str = ""
    """One sentence if it failed."""


def compare_tensor(
    file: GgufFile, expected: Expected, checkpoint: Checkpoint, orders: Orders, *, importances: bool
) -> TensorResult:
    """Compare a tensor of ``file`` with the checkpoint's.

    Args:
        orders: of the neurons, as the file says.
        importances: the file was encoded with an importance matrix.
    """
    counts = [part.rows for part in expected.parts]
    sources = (SourceRows(checkpoint, expected, number, orders) for number in range(len(counts)))
    result, failed = _compare(file, expected.name, expected.shape, counts, sources, importances)
    if failed is None:
        return result
    hint = _diagnosis(file.tensors[expected.name], expected, checkpoint, orders, failed)
    return replace(result, problem=result.problem + hint)


def compare_predictors(
    file: GgufFile, source: PredictorSource, orders: Orders, *, normed: bool
) -> Iterator[TensorResult]:
    """Compare the predictors of ``file`` with their source; ``normed``: they see the FFN's input after its norm."""
    spec = source.checkpoint.spec
    stack = (spec.experts,) if spec.experts else ()
    for layer, ranks in enumerate(source.ranks):
        widest = max(ranks)
        for part in PREDICTOR if widest else ():
            shape = (widest, spec.width) if part == "fc1" else (spec.neurons, widest)
            sources = (
                _predictor_rows(source, layer, expert, part, shape, orders, normed=normed)
                for expert in range(len(ranks))
            )
            name = gguf_name(ffn_places(spec, layer, part)[0])
            yield _compare(file, name, (*stack, *shape), [shape[0]] * len(ranks), sources, importances=False)[0]


def _predictor_rows(
    source: PredictorSource, layer: int, expert: int, part: str, shape: tuple[int, int], orders: Orders, *, normed: bool
) -> Rows:
    """One matrix of a predictor in the file's order, filled up with zeros to the layer's largest rank."""
    wanted_RC = np.zeros(shape, np.float32)
    if source.ranks[layer][expert]:
        found = (source.normed if normed else source.before_norm)(layer, expert)
        order = orders.get((layer, expert)) if part == "fc2" else None
        matrix_RC = found.fc1_RD if part == "fc1" else found.fc2_FR
        matrix_RC = matrix_RC if order is None else matrix_RC[order]
        wanted_RC[: matrix_RC.shape[0], : matrix_RC.shape[1]] = matrix_RC
    return lambda start, stop: wanted_RC[start:stop]


def _compare(
    file: GgufFile, name: str, shape: tuple[int, ...], counts: list[int], sources: Iterable[Rows], importances: bool
) -> tuple[TensorResult, int | None]:
    """How a tensor compares with the ``sources`` of its parts, of so many rows, and the first part that differs."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return TensorResult(name=name, problem="is missing"), None
    if tensor.shape != shape:
        problem = f"has shape {list(tensor.shape)} where the model makes it {list(shape)}"
        return TensorResult(name=name, problem=problem), None
    worst, error_square, source_square = 0.0, 0.0, 0.0
    first = 0
    for expert, (rows, source) in enumerate(zip(counts, sources, strict=True)):
        bad: list[int] = []
        for start, raw_RB, stored_RC in _pieces(tensor, first, rows):
            wanted_RC = source(start, start + len(stored_RC))
            bad_R, share = compare_rows(raw_RB, stored_RC, wanted_RC, tensor.type_name, importances=importances)
            error_RC = stored_RC - wanted_RC
            error_square += float(np.vdot(error_RC, error_RC))
            source_square += float(np.vdot(wanted_RC, wanted_RC))
            worst = max(worst, share)
            bad += (start + np.flatnonzero(bad_R)).tolist()
        first += rows
        if bad:
            where = f" of {'expert' if len(shape) > 2 else 'part'} {expert}" if len(counts) > 1 else ""
            exact = tensor.type_name in FLOAT_TYPES
            what = "is not its source" if exact else f"is farther from its source than {tensor.type_name} may be"
            problem = f"{len(bad)} of {rows} rows{where} differ, row {bad[0]} {what}"
            return TensorResult(name=name, type_name=tensor.type_name, worst=worst, problem=problem), expert
    error = float(f"{np.sqrt(error_square / source_square):.4g}") if source_square > 0 else 0.0
    return TensorResult(name=name, type_name=tensor.type_name, worst=worst, error=error), None


def _pieces(tensor: GgufTensor, first: int, rows: int) -> Iterator[tuple[int, npt.NDArray[np.uint8], Floats]]:
    """(row from ``first`` on, raw, decoded), a few of ``rows`` rows at a time."""
    columns = tensor.shape[-1]
    raw_RB = tensor.raw.reshape(-1, ggml.row_bytes(tensor.type_name, columns))
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        piece = raw_RB[first + start : first + min(rows, start + step)]
        yield start, piece, ggml.dequantize(piece.reshape(-1), tensor.type_name, (len(piece), columns))


def _diagnosis(tensor: GgufTensor, expected: Expected, checkpoint: Checkpoint, orders: Orders, expert: int) -> str:
    """What the tensor seems to hold instead, if that can be told."""
    part, first = expected.parts[expert], expected.first_row(expert)
    decoded_RC = np.concatenate([stored_RC for *_, stored_RC in _pieces(tensor, first, part.rows)])
    wanted_RC = SourceRows(checkpoint, expected, expert, orders)(0, part.rows)
    factor = np.float32(part.factor)
    for what, other_RC in _alternatives(expected, checkpoint, expert, wanted_RC / factor, orders):
        if other_RC.shape == decoded_RC.shape and _alike(decoded_RC, other_RC * factor).all():
            return f"; the tensor holds {what}"
    negated_R = _alike(decoded_RC, -wanted_RC) & ~_alike(decoded_RC, wanted_RC)
    if negated_R.any():
        return f"; row {int(np.argmax(negated_R))} has the other sign"
    return ""


def _alternatives(
    expected: Expected, checkpoint: Checkpoint, expert: int, wanted_RC: Floats, orders: Orders
) -> Iterator[tuple[str, Floats]]:
    place, heads = expected.parts[expert].place, expected.parts[expert].heads
    if heads and place.role in ("attn_q", "attn_k"):
        yield "the rows in Hugging Face's order, not ggml's", checkpoint.array(place)
    if expected.transposed:
        flat = checkpoint.array(place).reshape(wanted_RC.shape)
        yield "the matrix as Hugging Face has it, not transposed", flat
    if place.role in ("ffn_gate", "ffn_up"):
        other = "ffn_up" if place.role == "ffn_gate" else "ffn_gate"
        twin = Place(other, place.layer, place.expert)
        order = orders.get((place.layer or 0, expert))
        rows_RC = checkpoint.array(twin)
        yield f"{other}", rows_RC if order is None else rows_RC[order]
        if order is not None:
            yield "the neurons in the source's order, not the file's", checkpoint.array(place)
    for shift in (1, -1) if len(wanted_RC) > 1 else ():
        yield "the source's rows shifted by 1", np.roll(wanted_RC, shift, axis=0)


def _alike(one_RC: Floats, other_RC: Floats) -> npt.NDArray[np.bool_]:
    """Rows that are nearer to each other than half their length."""
    length_R = np.linalg.norm(other_RC, axis=1)
    return np.asarray(np.linalg.norm(one_RC - other_RC, axis=1) < 0.5 * length_R)
