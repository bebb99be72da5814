"""`tsconvert imatrix`: an importance matrix from a model and text, in llama.cpp's GGUF form."""

import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import empty, refuse_existing, reserved_name
from ...common.results import Result
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.sweep import sweep
from ...text.packing import calibration_rows
from .config import ImatrixConfig
from .file import ImportanceMatrix, coverage, save_imatrix
from .slopes import Slopes, measure_slopes
from .statistics import Collector


@dataclass(frozen=True, kw_only=True)
class ImatrixReport(Result):
    """The importance matrix that was written."""

    out: Path
    entries: int
    """Matrices."""
    tokens: int
    slopes: int
    """Matrices of which it is known what errors cost."""
    experts: int
    """In a layer; 0 for a dense model."""
    missed_experts: dict[str, list[int]]
    """Down matrix of a layer -> its experts that no token reached."""
    notes: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    def __str__(self) -> str:
        head = f"wrote {self.out}: importances of {self.entries} matrices from {self.tokens:,} tokens"
        if self.slopes:
            head += f", and what errors of {self.slopes} cost"
        return "\n".join([head, *(f"note: {note}" for note in self.notes)])


def imatrix(config: ImatrixConfig) -> ImatrixReport:
    """Collect what ``config.model``'s matrices are given and write it to ``config.out``.

    Returns:
        How much was seen, and which experts were not.

    Raises:
        TsconvertError: bad input, or an output that exists.

    Example:
        >>> print(imatrix(ImatrixConfig(model="tiny-mistral", out=Path("tiny.imatrix.gguf"), tokens=4096)))
    """
    start_s = time.monotonic()
    with processes.processes(config.device) as device:
        config = replace(config, device=device)
        refuse_existing(config.out)
        checkpoint = open_checkpoint(config.model)
        with nullcontext() if processes.rank() else reserved_name(config.out):
            slopes = _slopes(checkpoint, config) if config.slope_tokens else {}
            found = replace(_collect(checkpoint, config), slopes=slopes)
            if not processes.rank():
                save_imatrix(found, config.out)
                shutil.rmtree(_work_folder(config), ignore_errors=True)
    return ImatrixReport(
        out=config.out,
        entries=len(found.entries),
        tokens=found.chunks * found.chunk_tokens,
        slopes=len(found.slopes),
        experts=checkpoint.spec.experts,
        missed_experts={
            name: entry.missed for name, entry in found.entries.items() if "ffn_down_exps" in name and entry.missed
        },
        notes=coverage(found.entries),
        elapsed_s=round(time.monotonic() - start_s, 3),
    )


def _work_folder(config: ImatrixConfig) -> Path:
    return config.out.with_name(config.out.name + ".slopes")


def _slopes(checkpoint: Checkpoint, config: ImatrixConfig) -> Slopes:
    if processes.world() > 1:
        raise TsconvertError("--slopes: are measured by one process; leave them out under torchrun")
    folder = _work_folder(config)
    if folder.is_dir() and not config.resume:
        empty(folder)
    folder.mkdir(exist_ok=True)
    rows_NS = calibration_rows(
        checkpoint, config.data, tokens=config.slope_tokens, context=config.context, seed=config.seed
    )
    return measure_slopes(checkpoint, torch.from_numpy(rows_NS), folder, seed=config.seed, device=config.device)


def _collect(checkpoint: Checkpoint, config: ImatrixConfig) -> ImportanceMatrix:
    rows_NS = calibration_rows(checkpoint, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    own_NS = np.ascontiguousarray(rows_NS[processes.share(len(rows_NS))])
    collector = Collector(checkpoint, own_NS.size)
    stream = sweep(checkpoint, torch.from_numpy(own_NS), [collector], config.device)
    return ImportanceMatrix(
        entries=collector.finish(checkpoint, stream),
        datasets=config.datasets,
        chunks=rows_NS.shape[0],
        chunk_tokens=rows_NS.shape[1],
        model_fingerprint=checkpoint.fingerprint,
    )
