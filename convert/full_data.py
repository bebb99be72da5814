"""The rows that full recovery trains on and is judged by: those that local recovery kept from training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from .checkpoint import Checkpoint
from .corpora import documents, load_tokenizer
from .errors import TsconvertError
from .full_config import FullRecovery
from .full_loss import IGNORED
from .progress import note
from .recovery_sweep import JUDGE_SHARE
from .teacher_logits import KeptLogits

if TYPE_CHECKING:
    from .relufy import RelufyConfig

# Shape suffixes: N sequences, S tokens a sequence.
Tokens = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Packed:
    """Sequences of several texts each."""

    rows_NS: Tokens
    begins_NS: Flags
    """A text begins with this token."""
    asked_NS: Flags | None = None
    """Only these tokens are to be foreseen; None is all."""

    def __getitem__(self, rows: slice | Sequence[int]) -> "Packed":
        return Packed(self.rows_NS[rows], self.begins_NS[rows], None if self.asked_NS is None else self.asked_NS[rows])


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Sequences as the trainer takes them, with what was kept of the teacher.

    No token attends to another text, positions begin anew with each, and what a text begins with is not to be foreseen.
    """

    def __init__(self, packed: Packed, kept: KeptLogits | None = None) -> None:
        self.packed, self.kept = packed, kept

    def __len__(self) -> int:
        return len(self.packed.rows_NS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        asked_NS = self.packed.asked_NS
        asked_S = None if asked_NS is None else asked_NS[index]
        found = as_inputs(self.packed.rows_NS[index], self.packed.begins_NS[index], asked_S)
        return found | (self.kept.of(index) if self.kept else {})


def as_inputs(row_S: Tokens, begins_S: Flags, asked_S: Flags | None = None) -> dict[str, torch.Tensor]:
    """One sequence as the trainer takes it."""
    place_S = np.arange(len(row_S))
    first_S = np.maximum.accumulate(np.where(begins_S, place_S, 0))
    silent_S = begins_S if asked_S is None else begins_S | ~asked_S
    found = {"input_ids": row_S, "labels": np.where(silent_S, IGNORED, row_S), "position_ids": place_S - first_S}
    return {name: torch.from_numpy(part) for name, part in found.items()}


def full_rows(
    checkpoint: Checkpoint, config: "RelufyConfig", how: FullRecovery, multiple: int
) -> tuple[Packed, Packed]:
    """The rows to train on, and those that judge: what the layer sweep kept from training, here not trained on either.

    Args:
        multiple: of rows, in a step; the last few rows that would be less are left out.

    Raises:
        TsconvertError: as `documents`, or the text has nothing but what judges.
    """
    swept_NS, begins_NS = documents(
        checkpoint, config.data, tokens=config.tokens, context=config.context, seed=config.seed
    )
    count = max(1, len(swept_NS) // JUDGE_SHARE)
    held = Packed(swept_NS[-count:], begins_NS[-count:])
    wanted = max(config.tokens, how.tokens) + held.rows_NS.size
    every = Packed(*documents(checkpoint, config.data, tokens=wanted, context=config.context, seed=config.seed))
    known = {row_S.tobytes() for row_S in held.rows_NS}
    train = every[[i for i, row_S in enumerate(every.rows_NS) if row_S.tobytes() not in known]]
    if not len(train.rows_NS):
        raise TsconvertError(
            f"{len(every.rows_NS)} sequences are too few to train on and to judge with; give more --data"
        )
    passes = how.tokens / train.rows_NS.size
    if passes > 1.01:
        note(f"the text has {train.rows_NS.size:,} tokens to train on: it is passed {passes:.1f} times")
    return train[: max(1, len(train.rows_NS) // multiple) * multiple], held


def same_tokenizer(student: Checkpoint, teacher: Checkpoint) -> None:
    """Refuse a teacher whose tokens mean something else.

    Raises:
        TsconvertError: the tokenizers differ.
    """
    if student.folder == teacher.folder:
        return
    ours, theirs = (load_tokenizer(each.folder).get_vocab() for each in (student, teacher))
    if ours != theirs:
        token = next(iter(sorted(set(ours.items()) ^ set(theirs.items()))))[0]
        raise TsconvertError(
            f"{teacher.folder}: its tokenizer is not the one of {student.folder} (they differ in {token!r}); give a"
            " teacher that reads the same tokens"
        )
