"""Calibration sequences, split into those that train and those held back, and shared among processes."""

import numpy as np
import numpy.typing as npt
import torch

from ..common import processes
from ..common.errors import TsconvertError


class Sequences:
    """This process's share of the calibration sequences: those that train, then those that are held back.

    Args:
        rows_NS: token ids, the same in all processes.
        held_share: one of this many sequences is held back, the last ones; at least one.

    Raises:
        TsconvertError: there are fewer sequences than processes.
    """

    def __init__(self, rows_NS: npt.NDArray[np.int64], held_share: int) -> None:
        held = max(1, len(rows_NS) // held_share)
        train_NS, held_NS = rows_NS[:-held], rows_NS[-held:]
        if len(train_NS) < processes.world():
            raise TsconvertError(
                f"{len(rows_NS)} sequences of {rows_NS.shape[1]} tokens are too few to train on and to judge with; give"
                " more --tokens or a shorter --context"
            )
        own, context = processes.share(len(train_NS)), rows_NS.shape[1]
        self.tokens = rows_NS.size
        """The tokens of all processes."""
        self.all_train_tokens = train_NS.size
        self.first_token = own.start * context
        """Where this process's training tokens begin among those of all processes."""
        self.train_tokens = (own.stop - own.start) * context
        self.rows_NS = torch.from_numpy(np.concatenate([train_NS[own], held_NS[processes.share(held)]]))
        self.held = slice(own.stop - own.start, None)
        """The rows of ``rows_NS`` that are held back."""
