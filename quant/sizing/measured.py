"""What errors of each matrix cost: as the importance matrix says, or measured where a size is asked for without one."""

from pathlib import Path

from ...common.errors import TsconvertError
from ...common.progress import note
from ...model.checkpoint import open_checkpoint
from ..config import TypesConfig
from ..imatrix.config import ImatrixConfig
from ..imatrix.file import ImportanceMatrix, load_imatrix

_TOKENS = 4096


def with_slopes(
    config: TypesConfig, matrix: ImportanceMatrix | None, *, model: str | Path, out: Path, dry_run: bool
) -> ImportanceMatrix:
    """``matrix``; or, where none is given, what is measured on ``model``.

    It is kept beside ``out`` as NAME.imatrix.gguf, and taken from there by a run that comes again. A run that dies goes
    on where it was.

    Raises:
        TsconvertError: ``matrix`` has no slopes, nothing may be written, or what lies there is of other text or model.
    """
    if matrix is not None:
        if not matrix.slopes:
            raise TsconvertError(
                f"{matrix.path}: does not say what errors of each matrix cost; leave --imatrix out, and it is measured,"
                f" or run `tsconvert imatrix {model} --out FILE.gguf --slopes 4K` and give --imatrix FILE.gguf"
            )
        return matrix
    kept = out.with_suffix(".imatrix.gguf")
    asked = ImatrixConfig(
        model=str(model), out=kept, data=config.data, tokens=_TOKENS, slope_tokens=_TOKENS, resume=True
    )
    if kept.exists():
        note(f"what errors cost is taken from {kept}")
        found = load_imatrix(kept, open_checkpoint(model).fingerprint)
        if found.datasets != asked.datasets:
            was = ", ".join(found.datasets)
            raise TsconvertError(f"{kept}: was measured on other text, {was}; remove it, or give --imatrix {kept}")
        return found
    if dry_run:
        data = "".join(f" --data {source.path}" for source in config.data)
        raise TsconvertError(
            "--dry-run: what errors of each matrix cost has to be measured, and nothing is written; run `tsconvert"
            f" imatrix {model} --out {kept} --tokens 4K --slopes 4K{data}` first"
        )
    from ..imatrix.collect import imatrix  # needs torch

    note(f"measures what errors of each matrix cost, for {kept}; give it with --imatrix for other sizes")
    imatrix(asked)
    return load_imatrix(kept)
