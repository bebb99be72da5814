"""torch's files, written by Python: torch's own writer says of a full disk that a position was unexpected."""

from io import BytesIO
from pathlib import Path
from typing import Any

import torch


def save_torch(state: Any, path: Path) -> None:
    """``state`` as `torch.save` writes it.

    Raises:
        OSError: the disk is full or fails.
    """
    whole = BytesIO()
    torch.save(state, whole)
    path.write_bytes(whole.getbuffer())
