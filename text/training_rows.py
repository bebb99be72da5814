"""Rows for training: each holds several texts, which do not attend to each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

# Shape suffixes: N sequences, S tokens a sequence.
IGNORED = -100
"""The label of a token without a loss, as PyTorch's cross-entropy has it."""
Tokens = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Packed:
    """Sequences of several texts each."""

    rows_NS: Tokens
    begins_NS: Flags
    """A text begins with this token."""
    asked_NS: Flags | None = None
    """Only these tokens have a loss; None is all."""

    def __getitem__(self, rows: slice | Sequence[int]) -> "Packed":
        return Packed(self.rows_NS[rows], self.begins_NS[rows], None if self.asked_NS is None else self.asked_NS[rows])


def as_inputs(row_S: Tokens, begins_S: Flags, asked_S: Flags | None = None) -> dict[str, torch.Tensor]:
    """The trainer's inputs of one sequence."""
    place_S = np.arange(len(row_S))
    first_S = np.maximum.accumulate(np.where(begins_S, place_S, 0))
    silent_S = begins_S if asked_S is None else begins_S | ~asked_S
    found = {"input_ids": row_S, "labels": np.where(silent_S, IGNORED, row_S), "position_ids": place_S - first_S}
    return {name: torch.from_numpy(part) for name, part in found.items()}
