"""PowerInfer's activation files, which its solver places neurons by."""

from io import BytesIO
from pathlib import Path

from ...common.errors import TsconvertError
from ...common.files import atomic_folder
from .file import Profile


def save_powerinfer_activations(found: Profile, out: Path) -> None:
    """Write PowerInfer's `activation_{i}.pt`: one tensor [F] of counts a layer.

    Its solver reads the numbers, `--layer` of them; nothing else may lie in the folder, because its exporter lists it.
    """
    import torch

    require_blocks(found.layers[0].counts_CEF.shape[2])
    with atomic_folder(out) as folder:
        for i in range(len(found.layers)):
            whole = BytesIO()  # torch's own file writer says of a full disk that a position was unexpected
            torch.save(torch.from_numpy(found.counts(i)), whole)
            (folder / f"activation_{i}.pt").write_bytes(whole.getbuffer())


def require_blocks(neurons: int) -> None:
    """Refuse what PowerInfer's solver cannot take.

    Raises:
        TsconvertError: 256 does not divide the neurons of a layer.
    """
    if neurons % 256:
        raise TsconvertError(
            f"--powerinfer-dir: {neurons} neurons, and PowerInfer's solver wants a multiple of 256; leave it out"
        )
