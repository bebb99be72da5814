"""Reading a Hugging Face checkpoint: safetensors files, mapped, checked against the model spec before use.

Every tensor is found by its place (tensor_names.py), whatever layout the file has; nothing is read until it is asked
for.
"""

import mmap
from functools import cache
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from ..common.progress import note
from .files.dtypes import to_float32
from .files.integrity import INFINITE_BITS, TensorScans, not_finite
from .files.locate import find_model
from .files.safetensors_files import TensorInfo
from .find_tensors import check_config, find_tensors
from .tensor_names import Place


class Checkpoint:
    """A checkpoint folder whose tensors are all there, have the right shapes and lie within their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = find_tensors(folder)
        self.config: dict[str, Any] = found.config
        """config.json, without what its weights contradict."""
        self.spec = found.spec
        self._maps: dict[Path, mmap.mmap] = {}
        self._infos = found.infos
        for line in found.notes:
            _note(line)
        self.scans = TensorScans({place: info.dtype for place, info in self._infos.items()}, self.raw)

    def info(self, place: Place) -> TensorInfo:
        """The name, file, type, shape and position of the tensor at ``place``."""
        return self._infos[place]

    def __contains__(self, place: Place) -> bool:
        return place in self._infos

    @property
    def places(self) -> list[Place]:
        """Every tensor of the folder, predictors included, in the order of the model."""
        return list(self._infos)

    def raw(self, place: Place) -> npt.NDArray[np.uint8]:
        """The bytes of the tensor at ``place``, as a view of the mapped file."""
        info = self._infos[place]
        return np.frombuffer(self._mapped(info.file), np.uint8, info.size_bytes, info.start)

    def prefetch(self, layer: int) -> None:
        """Let the kernel read the tensors of ``layer`` into the page cache in the background."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for place, info in self._infos.items():
            if place.layer == layer:
                start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
                self._mapped(info.file).madvise(mmap.MADV_WILLNEED, start, info.start + info.size_bytes - start)

    def array(self, place: Place) -> npt.NDArray[np.float32]:
        """The tensor at ``place`` as float32 of its shape (a copy, but for F32 files)."""
        info = self._infos[place]
        return to_float32(self.raw(place), info.dtype).reshape(info.shape)

    @property
    def size_bytes(self) -> int:
        """The size of all tensors."""
        return sum(info.size_bytes for info in self._infos.values())

    @property
    def has_predictors(self) -> bool:
        """Whether predictors lie inside the checkpoint, as in TurboSparse's releases."""
        return Place("fc1", 0, 0 if self.spec.experts else None) in self._infos

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over spec and every tensor's bytes; what is made from a model names it."""
        self.scans.start()
        whole = blake3.blake3(self.spec.identity.encode())
        for place, info in self._infos.items():
            whole.update(f"{place} {info.dtype} {info.shape} ".encode() + self.scans[place].digest)
        return whole.hexdigest()

    def require_finite(self) -> None:
        """Scan every value, before hours are spent on them.

        Raises:
            TsconvertError: a tensor holds NaN or infinity; names file, tensor, how many, and the first row.
        """
        self.scans.start()
        for place, info in self._infos.items():
            if self.scans[place].largest_bits >= INFINITE_BITS[info.dtype]:
                raise not_finite(info.file, info.name, self.array(place))

    def _mapped(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def open_checkpoint(model: str | Path) -> Checkpoint:
    """The checkpoint that ``model`` names: a folder, an embedded model (`tiny-mistral`), or a hub id.

    Raises:
        TsconvertError: nothing is there, or what is there is incomplete, torn, or of another kind.
    """
    return Checkpoint(find_model(model, check_config))


@cache
def _note(line: str) -> None:
    """Print a note on a checkpoint once, however often a command opens it."""
    note(line)
