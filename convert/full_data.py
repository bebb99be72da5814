"""The rows that full recovery trains on and is judged by: those that local recovery kept from training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from .checkpoint import Checkpoint
from .corpora import calibration_rows
from .full_config import FullRecovery
from .teacher_logits import KeptLogits

if TYPE_CHECKING:
    from .relufy import RelufyConfig

# Shape suffixes: N sequences, S tokens a sequence.
_HELD_SHARE = 16  # as in the layer sweep: one sequence in so many judges
Tokens = npt.NDArray[np.int64]


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Rows of tokens as the trainer takes them, with what was kept of the teacher."""

    def __init__(self, rows_NS: Tokens, kept: KeptLogits | None = None) -> None:
        self.rows_NS, self.kept = torch.from_numpy(np.ascontiguousarray(rows_NS)), kept

    def __len__(self) -> int:
        return len(self.rows_NS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row_S = self.rows_NS[index]
        return {"input_ids": row_S, "labels": row_S} | (self.kept.of(index) if self.kept else {})


def full_rows(
    checkpoint: Checkpoint, config: "RelufyConfig", how: FullRecovery, multiple: int
) -> tuple[Tokens, Tokens]:
    """The rows to train on, and those that judge: what the layer sweep kept from training, here not trained on either.

    Args:
        multiple: of rows, in a step; the last few rows that would be less are left out.

    Raises:
        TsconvertError: as `calibration_rows`.
    """
    more = {"context": config.context, "seed": config.seed}
    swept_NS = calibration_rows(checkpoint, config.data, tokens=config.tokens, **more)
    held_NS = swept_NS[-max(1, len(swept_NS) // _HELD_SHARE) :]
    wanted = max(config.tokens, how.tokens) + held_NS.size
    rows_NS = calibration_rows(checkpoint, config.data, tokens=wanted, **more)
    known = {row_S.tobytes() for row_S in held_NS}
    train_NS = np.stack(_others(rows_NS, known))
    return train_NS[: max(1, len(train_NS) // multiple) * multiple], held_NS


def _others(rows_NS: Tokens, known: set[bytes]) -> Sequence[Tokens]:
    return [row_S for row_S in rows_NS if row_S.tobytes() not in known]
