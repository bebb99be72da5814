"""How far a stored weight may lie from its source, for each GGUF type.

Float types are exact: the stored bits are the source, rounded once. For a quantized type the bound comes from the
scales that the file itself stores: decoding a block with all its quants at their lowest and at their highest gives the
grid that its weights lie on, and

- ``nearest``: within the grid a weight is stored as the level nearest to it (half a step, and what rounding the scale
  to float16 adds). K, IQ4, ternary and MXFP4 encoders choose levels for the final scales, Q8_0 and the plain Q4 and Q5
  for scales that differ by one rounding. Q4 and Q5 encoded with importances fit the scale after they chose the levels,
  so there this does not hold and is not asked.
- ``clip``: how far beyond the grid a weight may lie, as a share of its block's largest, where the encoder's own formula
  bounds that: Q4_0 stores the peak as -8 and the opposite value as 7, so an eighth.
- a row's distance from its source is at most 1.25 of the source's length, and no block is zeros where its source is
  not. Zeros are 1 away, another neuron's row about 1.4, a row of the other sign 2.

Types that store indices of code vectors (IQ1, IQ2, IQ3) have no such grid: the last rule alone holds for them.
Shape suffixes: R rows, C columns, B blocks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...model.files.dtypes import from_float32, to_float32
from ...model.files.gguf import ggml

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
FLOAT_TYPES = ("F32", "F16", "BF16")
_F16_ROUNDING, _F16_TINY = 2.0**-11, 2.0**-25  # relative error of a normal float16, absolute error of a subnormal one
_FARTHEST = 1.25  # distance of a row from its source, over the source's length
_NEGLIGIBLE = 1e-4  # scales of blocks with smaller peaks may underflow float16


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where in a block the quants lie, and what levels they stand for."""

    quants: slice
    """Which of the block's bytes hold the quants (ggml-common.h)."""
    lowest: int = 0x00
    """The byte that sets all quants to one end of the grid."""
    highest: int = 0xFF
    half_step: float
    """Half the widest gap between levels, as a share of the grid's width."""
    scale_steps: float
    """The largest multiple of the block's float16 scale that a level has."""
    clip: float | None
    """Largest distance of a weight from the grid, as a share of the block's peak; None: not bounded."""
    fitted: bool = False
    """With importances the scale is fitted after the levels were chosen."""


def _uniform(
    start: int, stop: int, levels: int, clip: float | None = None, *, scale_steps: float = 0.0, fitted: bool = False
) -> Grid:
    return Grid(
        quants=slice(start, stop), half_step=0.5 / (levels - 1), clip=clip, scale_steps=scale_steps or float(levels),
        fitted=fitted,
    )  # fmt: skip


GRIDS = {
    "Q8_0": Grid(quants=slice(2, 34), lowest=0x81, highest=0x7F, half_step=0.5 / 254, scale_steps=127.0, clip=0.0),
    "Q4_0": _uniform(2, 18, 16, 1 / 8, fitted=True),
    "Q4_1": _uniform(4, 20, 16, 0.0, fitted=True),
    "Q5_0": _uniform(2, 22, 32, 1 / 16, fitted=True),
    "Q5_1": _uniform(4, 24, 32, 0.0, fitted=True),
    "Q2_K": _uniform(16, 80, 4, scale_steps=45.0),
    "Q3_K": _uniform(0, 96, 8, scale_steps=128.0),
    "Q4_K": _uniform(16, 144, 16, scale_steps=945.0),
    "Q5_K": _uniform(16, 176, 32, scale_steps=1953.0),
    "Q6_K": _uniform(0, 192, 64, scale_steps=4096.0),
    # the code book's widest gap is 24 of 240
    "IQ4_NL": Grid(quants=slice(2, 18), half_step=0.05, scale_steps=127.0, clip=None),
    "IQ4_XS": Grid(quants=slice(8, 136), half_step=0.05, scale_steps=4064.0, clip=None),
    # levels 0, 1, 2, 3, 4, 6, 8, 12 and their negatives; the exponent leaves peaks up to 4/3 of the grid's end
    "MXFP4": Grid(quants=slice(1, 17), lowest=0xFF, highest=0x77, half_step=1 / 12, scale_steps=0.0, clip=1 / 4),
    "TQ1_0": Grid(quants=slice(0, 52), half_step=0.25, scale_steps=1.0, clip=0.0),
    "TQ2_0": Grid(quants=slice(0, 64), highest=0xAA, half_step=0.25, scale_steps=1.0, clip=0.0),
}  # fmt: skip


def compare_rows(
    raw_RB: Bytes, stored_RC: Floats, wanted_RC: Floats, type_name: str, *, importances: bool
) -> tuple[npt.NDArray[np.bool_], float]:
    """Compare stored rows (``stored_RC``: decoded) with their source.

    Args:
        importances: they were encoded with an importance matrix.

    Returns:
        Which rows [R] break the bound, and the largest error as a share of what the type allows it; 0 where the bits
        are the same.
    """
    if type_name in FLOAT_TYPES:
        exact_RC = to_float32(from_float32(wanted_RC, type_name), type_name).reshape(wanted_RC.shape)
        same_RC = stored_RC == exact_RC
        return ~same_RC.all(axis=1), 0.0 if same_RC.all() else float("inf")
    error_RC = np.abs(stored_RC - wanted_RC)
    finite_RC = np.isfinite(error_RC)
    far_R, worst = _row_by_row(error_RC, stored_RC, wanted_RC, type_name)
    bad_R = far_R | ~finite_RC.all(axis=1)
    grid = GRIDS.get(type_name)
    if grid is not None and not (grid.fitted and importances):
        share_RC = _share_of_bound(raw_RB, error_RC, wanted_RC, type_name, grid)
        bad_R |= ~(share_RC <= 1.0).all(axis=1)
        worst = float(np.nanmax(share_RC, initial=0.0))
    return bad_R, worst if finite_RC.all() else float("inf")


def _share_of_bound(raw_RB: Bytes, error_RC: Floats, wanted_RC: Floats, type_name: str, grid: Grid) -> Floats:
    block = ggml.TYPES[type_name]
    ends = []
    for byte in (grid.lowest, grid.highest):
        blocks = raw_RB.reshape(-1, block.size_bytes).copy()
        blocks[:, grid.quants] = byte
        ends.append(ggml.dequantize(blocks.reshape(raw_RB.shape), type_name, wanted_RC.shape))
    low_RC, high_RC = np.minimum(*ends), np.maximum(*ends)
    width_RC = high_RC - low_RC
    slack_RC = _F16_ROUNDING * (np.abs(low_RC) + np.abs(high_RC) + width_RC) + _F16_TINY * (grid.scale_steps + 1)
    beyond_RC = np.maximum(np.maximum(low_RC - wanted_RC, wanted_RC - high_RC), 0.0)
    allowed_RC = beyond_RC + width_RC * grid.half_step + slack_RC
    share_RC = error_RC / allowed_RC
    if grid.clip is not None:
        peak_RC = _peaks(wanted_RC, block.weights).repeat(block.weights, axis=1)
        share_RC = np.maximum(share_RC, beyond_RC / (grid.clip * peak_RC + slack_RC))
    return np.asarray(share_RC, np.float32)


def _row_by_row(
    error_RC: Floats, stored_RC: Floats, wanted_RC: Floats, type_name: str
) -> tuple[npt.NDArray[np.bool_], float]:
    weights = ggml.TYPES[type_name].weights
    peak_RB = _peaks(wanted_RC, weights)
    lost_R = ((_peaks(stored_RC, weights) == 0) & (peak_RB > _NEGLIGIBLE)).any(axis=1)
    length_R = np.sqrt(np.square(wanted_RC, dtype=np.float64).sum(axis=1))
    distance_R = np.sqrt(np.square(error_RC, dtype=np.float64).sum(axis=1))
    allowed_R = _FARTHEST * length_R + _NEGLIGIBLE * np.sqrt(wanted_RC.shape[1])
    return lost_R | ~(distance_R <= allowed_R), float((distance_R / allowed_R).max(initial=0.0))


def _peaks(values_RC: Floats, weights: int) -> Floats:
    """The largest magnitude in each block [R, B]."""
    return np.asarray(np.abs(values_RC).reshape(len(values_RC), -1, weights).max(axis=2), np.float32)
