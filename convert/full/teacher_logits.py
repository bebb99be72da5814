"""The teacher's largest log-probabilities, computed once and stored: for teachers too big to run beside the student."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common import processes
from ...common.files import reserve
from ...common.progress import progress

# Shape suffixes: N sequences, S tokens a sequence, K largest logits.
_INDEX, _LOG = "teacher_index.npy", "teacher_log.npy"


class TeacherLogits:
    """[N, S, K] indices and log-probabilities in mapped files."""

    def __init__(self, folder: Path, rows: int, context: int, top: int, *, write: bool = False) -> None:
        mode: Any = "w+" if write else "r"
        shape = (rows, context, top)
        mapped: Any = np.lib.format.open_memmap
        self.index_NSK = mapped(folder / _INDEX, mode, np.int32, shape)
        self.log_NSK = mapped(folder / _LOG, mode, np.float16, shape)
        for name in (_INDEX, _LOG) if write else ():
            with (folder / name).open("r+b") as stream:  # a mapped file that the disk has no room for ends the process
                reserve(stream, (folder / name).stat().st_size)

    def row(self, row: int) -> dict[str, torch.Tensor]:
        """One sequence's, as the trainer takes them."""
        return {
            "top_index": torch.from_numpy(self.index_NSK[row].copy()),
            "top_log": torch.from_numpy(self.log_NSK[row].copy()),
        }


@torch.no_grad()
def teacher_logits(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    shape: tuple[int, int],
    top: int,
    folder: Path,
) -> TeacherLogits:
    """Compute a teacher's largest log-probabilities, unless an earlier run did; process 0 works, the others read.

    Args:
        model: the dense teacher.
        batches: its inputs, a sequence at a time.
        shape: [N, S] of all sequences.
        folder: where the files go; an empty one, written last, says that they are complete.
    """
    rows, context = shape
    whole = folder / f"teacher_top_{top}_of_{rows}"
    if not processes.rank() and not whole.exists():
        logits = TeacherLogits(folder, rows, context, top, write=True)
        with progress("teacher's logits", rows) as step:
            for row, inputs in enumerate(batches):
                logits_SV = model(**inputs, use_cache=False).logits[0].float()
                log_SK, index_SK = logits_SV.log_softmax(-1).topk(top)
                logits.index_NSK[row], logits.log_NSK[row] = index_SK.cpu().numpy(), log_SK.cpu().numpy()
                step("")
        logits.index_NSK.flush()
        logits.log_NSK.flush()
        whole.touch()
    processes.barrier()
    return TeacherLogits(folder, rows, context, top)
