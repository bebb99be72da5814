"""Every tensor of a GGUF file against its source, a few rows at a time.

Shape suffixes: R rows, C columns, D model width, F neurons.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...model.checkpoint import Checkpoint
from ...model.tensor_names import PREDICTOR, Place, ffn_places, gguf_name
from ...quant.gguf.file import GgufFile, GgufTensor
from ...quant.targets.predictor_source import PredictorSource
from ...quant.types import ggml
from .expected_tensors import Expected, Floats, Orders, SourceRows
from .type_bounds import FLOAT_TYPES, Comparison, compare_rows

_PIECE_VALUES = 1 << 22
Rows = Callable[[int, int], Floats]


@dataclass(frozen=True, kw_only=True)
class TensorResult:
    """How one tensor compares with its source."""

    name: str
    type_name: str
    worst: float
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
    tensor = file.tensors.get(expected.name)
    problem = _shape_problem(tensor, expected.shape)
    if problem or tensor is None:
        return TensorResult(name=expected.name, type_name="", worst=0.0, problem=problem)
    worst, at, squares = 0.0, 0, np.zeros(2)
    rows = int(np.prod(expected.shape[:-1], dtype=np.int64)) // len(expected.places)
    for expert in range(len(expected.places)):
        source = SourceRows(checkpoint, expected, expert, orders)
        share, problem = _compare(tensor, source, at, rows, importances, squares)
        worst = max(worst, share)
        if problem:
            where = f" of expert {expert}" if len(expected.places) > 1 else ""
            hint = _diagnosis(tensor, expected, checkpoint, orders, expert, at, rows)
            return TensorResult(
                name=expected.name, type_name=tensor.type_name, worst=worst, problem=problem.format(where=where) + hint
            )
        at += rows
    return TensorResult(name=expected.name, type_name=tensor.type_name, worst=worst, error=_relative(squares))


def compare_predictors(
    file: GgufFile, source: PredictorSource, orders: Orders, *, normed: bool
) -> Iterator[TensorResult]:
    """Compare the predictors of ``file`` with their source; ``normed``: they see the FFN's input after its norm."""
    spec = source.checkpoint.spec
    for layer, ranks in enumerate(source.ranks):
        if not max(ranks):
            continue
        for part in PREDICTOR:
            shape = (max(ranks), spec.width) if part == "fc1" else (spec.neurons, max(ranks))
            name = gguf_name(ffn_places(spec, layer, part)[0])
            tensor = file.tensors.get(name)
            stack = (spec.experts,) if spec.experts else ()
            problem = _shape_problem(tensor, (*stack, *shape))
            worst, squares = 0.0, np.zeros(2)
            for expert, rank in enumerate(ranks):
                if problem or tensor is None:
                    break
                wanted_RC = np.zeros(shape, np.float32)
                if rank:
                    read = source.normed if normed else source.before_norm
                    found = read(layer, expert)
                    matrix_RC = found.fc1_RD if part == "fc1" else found.fc2_FR
                    order = orders.get((layer, expert)) if part == "fc2" else None
                    wanted_RC[: matrix_RC.shape[0], : matrix_RC.shape[1]] = (
                        matrix_RC if order is None else matrix_RC[order]
                    )
                share, problem = _compare(tensor, _of(wanted_RC), expert * shape[0], shape[0], False, squares)
                problem = problem.format(where=f" of expert {expert}" if stack else "")
                worst = max(worst, share)
            type_name = tensor.type_name if tensor else ""
            yield TensorResult(
                name=name, type_name=type_name, worst=worst, error=_relative(squares), problem=problem
            )  # fmt: skip


def _of(rows_RC: Floats) -> Rows:
    return lambda start, stop: rows_RC[start:stop]


def _shape_problem(tensor: GgufTensor | None, shape: tuple[int, ...]) -> str:
    if tensor is None:
        return "is missing"
    if tensor.shape != shape:
        return f"has shape {list(tensor.shape)} where the model makes it {list(shape)}"
    return ""


def _pieces(tensor: GgufTensor, at: int, rows: int) -> Iterator[tuple[int, int, npt.NDArray[np.uint8], Floats]]:
    """(start, stop, raw, decoded) of the rows from ``at`` on."""
    columns = tensor.shape[-1]
    raw_RB = tensor.raw.reshape(-1, ggml.row_bytes(tensor.type_name, columns))
    step = max(1, _PIECE_VALUES // columns)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        piece = raw_RB[at + start : at + stop]
        yield start, stop, piece, ggml.dequantize(piece.reshape(-1), tensor.type_name, (stop - start, columns))


def _relative(squares: npt.NDArray[np.float64]) -> float:
    """The root of error over source; 0 of nothing."""
    return float(f"{np.sqrt(squares[0] / squares[1]):.4g}") if squares[1] > 0 else 0.0


def _compare(
    tensor: GgufTensor, source: Rows, at: int, rows: int, importances: bool, squares: npt.NDArray[np.float64]
) -> tuple[float, str]:
    """(worst, problem); the sums of the errors' and the source's squares are added to ``squares``."""
    worst, bad = 0.0, []
    for start, stop, raw_RB, stored_RC in _pieces(tensor, at, rows):
        wanted_RC = source(start, stop)
        found: Comparison = compare_rows(raw_RB, stored_RC, wanted_RC, tensor.type_name, importances=importances)
        for i, part_RC in enumerate((stored_RC - wanted_RC, wanted_RC)):
            squares[i] += float(np.vdot(part_RC, part_RC))
        worst = max(worst, found.worst)
        bad += (start + np.flatnonzero(found.bad_R)).tolist()
    if not bad:
        return worst, ""
    what = (
        "is not its source"
        if tensor.type_name in FLOAT_TYPES
        else f"is farther from its source than {tensor.type_name} may be"
    )
    return worst, f"{len(bad)} of {rows} rows{{where}} differ, row {bad[0]} {what}"


def _diagnosis(
    tensor: GgufTensor, expected: Expected, checkpoint: Checkpoint, orders: Orders, expert: int, at: int, rows: int
) -> str:
    """What the tensor seems to hold instead, if that can be told."""
    decoded_RC = np.concatenate([stored_RC for *_, stored_RC in _pieces(tensor, at, rows)])
    wanted_RC = SourceRows(checkpoint, expected, expert, orders)(0, rows)
    for what, other_RC in _alternatives(expected, checkpoint, expert, wanted_RC, orders):
        if other_RC.shape == decoded_RC.shape and _alike(decoded_RC, other_RC).all():
            return f"; the tensor holds {what}"
    negated_R = _alike(decoded_RC, -wanted_RC) & ~_alike(decoded_RC, wanted_RC)
    if negated_R.any():
        return f"; row {int(np.argmax(negated_R))} has the other sign"
    return ""


def _alternatives(
    expected: Expected, checkpoint: Checkpoint, expert: int, wanted_RC: Floats, orders: Orders
) -> Iterator[tuple[str, Floats]]:
    place = expected.places[expert]
    if expected.role in ("attn_q", "attn_k"):
        yield "the rows in Hugging Face's order, not ggml's", checkpoint.array(place)
    if expected.transposed:
        flat = checkpoint.array(place).reshape(wanted_RC.shape)
        yield "the matrix as Hugging Face has it, not transposed", flat
    if expected.role in ("ffn_gate", "ffn_up"):
        other = "ffn_up" if expected.role == "ffn_gate" else "ffn_gate"
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
