"""The teacher's largest log-probabilities, computed once and kept on disk: for teachers too big to run along."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common import processes
from ...common.files import reserve
from ...common.progress import progress

# Shape suffixes: N sequences, S tokens a sequence, K largest logits that are kept.
_INDEX, _LOG = "teacher_index.npy", "teacher_log.npy"


class KeptLogits:
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

    def of(self, row: int) -> dict[str, torch.Tensor]:
        """Those of one sequence, as the trainer takes them."""
        return {
            "top_index": torch.from_numpy(self.index_NSK[row].copy()),
            "top_log": torch.from_numpy(self.log_NSK[row].copy()),
        }


@torch.no_grad()
def keep_logits(
    model: Any,
    batches: Iterable[dict[str, torch.Tensor]],
    shape: tuple[int, int],
    top: int,
    folder: Path,
) -> KeptLogits:
    """Compute them, unless a run before this one did; process 0 works, the others read.

    Args:
        model: the dense teacher.
        batches: what it is given, a sequence at a time.
        shape: of all sequences, [N, S].
        folder: where the files go; a last, empty one says that they are whole.
    """
    rows, context = shape
    whole = folder / f"teacher_top_{top}_of_{rows}"
    if not processes.rank() and not whole.exists():
        kept = KeptLogits(folder, rows, context, top, write=True)
        with progress("teacher's logits", rows) as step:
            for row, inputs in enumerate(batches):
                logits_SV = model(**inputs, use_cache=False).logits[0].float()
                log_SK, index_SK = logits_SV.log_softmax(-1).topk(top)
                kept.index_NSK[row], kept.log_NSK[row] = index_SK.cpu().numpy(), log_SK.cpu().numpy()
                step("")
        kept.index_NSK.flush()
        kept.log_NSK.flush()
        whole.touch()
    processes.barrier()
    return KeptLogits(folder, rows, context, top)
