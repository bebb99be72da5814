"""What each type would do to a tensor: the error of its rounding, measured on some of its rows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...model.files.dtypes import to_float32
from ...model.files.gguf import ggml
from ..gguf.tensor_plan import MatrixRows, TensorPlan
from ..types.encoding import encode

# Shape suffixes: R rows, C columns, E experts.
Floats = npt.NDArray[np.float32]
_WEIGHTS = 1 << 17  # of a tensor that are looked at, about; 4,096 blocks of 32
_PLACES = 16  # in a matrix that they are taken from


def divergence(
    tensor: TensorPlan, slopes_EC: Floats, importance_EC: Floats | None, type_names: Sequence[str]
) -> list[float]:
    """KL in nats a token that the tensor adds when it is stored as each of ``type_names`` (imatrix/slopes.py)."""
    assert not callable(tensor.source)
    totals = np.zeros(len(type_names))
    wanted = max(1, _WEIGHTS // (len(tensor.source) * tensor.shape[-1]))
    for expert, matrix in enumerate(tensor.source):
        importance_C = None if importance_EC is None else importance_EC[expert]
        parts = [matrix.read(*span) for span in _spans(matrix.rows, wanted)]
        raw_RC = np.ascontiguousarray(np.concatenate(parts))
        rows_RC = _floats(raw_RC, matrix)
        square = float(np.square(rows_RC, dtype=np.float64).mean())
        for k, type_name in enumerate(type_names):
            if square and type_name != matrix.dtype:
                stored_RC = _decoded(encode(raw_RC, matrix.dtype, type_name, importance_C), type_name, rows_RC.shape)
                error_C = np.square(stored_RC - rows_RC).mean(0, dtype=np.float64)
                totals[k] += float(slopes_EC[expert] @ error_C) / square
    return [float(total) for total in totals]


def _spans(rows: int, wanted: int) -> list[tuple[int, int]]:
    """Runs of rows, spread evenly, ``wanted`` rows in all."""
    if wanted >= rows:
        return [(0, rows)]
    places = min(_PLACES, wanted)
    run = wanted // places
    return [(start, start + run) for start in ((rows - run) * np.arange(places) // max(1, places - 1)).tolist()]


def _floats(raw_RC: npt.NDArray[np.generic], matrix: MatrixRows) -> Floats:
    return _decoded(raw_RC.view(np.uint8), matrix.dtype, (len(raw_RC), matrix.columns))


def _decoded(raw: npt.NDArray[np.uint8], type_name: str, shape: tuple[int, ...]) -> Floats:
    if type_name in ("F32", "F16", "BF16"):
        return to_float32(raw.reshape(-1), type_name).reshape(shape)
    return ggml.dequantize(raw, type_name, shape)
