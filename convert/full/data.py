"""The rows that full recovery trains on, and those that judge it: what local recovery did not train on, and more."""

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from ...common.errors import TsconvertError
from ...common.progress import note
from ...model.checkpoint import Checkpoint
from ...text.packing import documents
from ...text.tokenizer import load_tokenizer
from ...text.training_rows import Packed, as_inputs
from ..config import RelufyConfig
from ..config.full import FullRecovery
from ..local.sweep import JUDGE_SHARE
from .teacher_logits import TeacherLogits

_JUDGES = 8  # sequences, if there is text enough; checkpoints that follow each other differ by less than one row tells


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Sequences as the trainer takes them, with the teacher's logits if they were stored.

    No token attends to another text, positions begin anew with each, and what a text begins with is not to be foreseen.
    """

    def __init__(self, packed: Packed, logits: TeacherLogits | None = None) -> None:
        self.packed, self.logits = packed, logits

    def __len__(self) -> int:
        return len(self.packed.rows_NS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        asked_NS = self.packed.asked_NS
        asked_S = None if asked_NS is None else asked_NS[index]
        found = as_inputs(self.packed.rows_NS[index], self.packed.begins_NS[index], asked_S)
        return found | (self.logits.row(index) if self.logits else {})


def full_rows(checkpoint: Checkpoint, config: RelufyConfig, how: FullRecovery, multiple: int) -> tuple[Packed, Packed]:
    """The rows to train on, and those that judge, which neither this nor the layer sweep has trained on.

    They are what the sweep kept from training and, up to _JUDGES of them, a sixteenth of the others.

    Args:
        multiple: of rows, in a step; the last few rows that would be less are left out.

    Raises:
        TsconvertError: as `documents`, or the text has nothing but what judges.
    """
    swept_NS, begins_NS = documents(
        checkpoint, config.data, tokens=config.tokens, context=config.context, seed=config.seed
    )
    count = max(1, len(swept_NS) // JUDGE_SHARE)
    more = min(max(0, _JUDGES - count), max(0, how.tokens - config.tokens) // config.context // JUDGE_SHARE)
    wanted = max(config.tokens, how.tokens) + (count + more) * config.context
    every = Packed(*documents(checkpoint, config.data, tokens=wanted, context=config.context, seed=config.seed))
    fresh = _others(every, swept_NS)
    judges = every[fresh[len(fresh) - min(more, len(fresh) // JUDGE_SHARE) :]]
    held = Packed(
        np.concatenate([swept_NS[-count:], judges.rows_NS]), np.concatenate([begins_NS[-count:], judges.begins_NS])
    )
    train = every[_others(every, held.rows_NS)]
    if not len(train.rows_NS):
        raise TsconvertError(
            f"{len(every.rows_NS)} sequences are too few to train on and to judge with; give more --data"
        )
    passes = how.tokens / train.rows_NS.size
    if passes > 1.01:
        note(f"the text has {train.rows_NS.size:,} tokens to train on: it is passed {passes:.1f} times")
    return train[: max(1, len(train.rows_NS) // multiple) * multiple], held


def _others(packed: Packed, known_NS: npt.NDArray[np.int64]) -> list[int]:
    """The places in ``packed`` of the sequences that are not among ``known_NS``."""
    known = {row_S.tobytes() for row_S in known_NS}
    return [i for i, row_S in enumerate(packed.rows_NS) if row_S.tobytes() not in known]


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
