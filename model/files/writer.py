"""Writing a checkpoint: safetensors shards that are laid out first and filled in any order.

A checkpoint's header is known before its weights, so each tensor can be written at its place in any order, and a sweep
can resume.
"""

import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...common.files import FULL, naming, put, reserve, write_json
from .dtypes import DTYPE_BYTES
from .safetensors_files import INDEX, TensorInfo

_PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """A tensor that a checkpoint is going to hold."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    whole: str | None = None
    """The tensor whose rows these are, among others; the parts of one follow each other in a plan."""

    @property
    def size_bytes(self) -> int:
        """The size of its data."""
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPE_BYTES[self.dtype]


class CheckpointWriter:
    """Safetensors shards of a plan, laid out at once and filled in any order.

    Args:
        folder: where they go; an `atomic_folder`'s partial one.
        plan: every tensor, in the order of the files.
        max_shard_bytes: a shard is closed before it would grow past this; one tensor may be larger.

    Example:
        >>> with CheckpointWriter(folder, [PlannedTensor(name="w", dtype="F32", shape=(2,))]) as writer:
        ...     writer.write("w", np.zeros(2, np.float32).view(np.uint8))
    """

    def __init__(self, folder: Path, plan: Sequence[PlannedTensor], max_shard_bytes: int = 5_000_000_000) -> None:
        self.folder = folder
        self._slots: dict[str, TensorInfo] = {}
        self._open: dict[Path, BinaryIO] = {}
        shards = _split(plan, max_shard_bytes)
        for i, shard in enumerate(shards):
            name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            self._lay_out(folder / name, shard)
        if len(shards) > 1:
            weight_map = {tensor.whole or tensor.name: self._slots[tensor.name].file.name for tensor in plan}
            total = sum(tensor.size_bytes for tensor in plan)
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def write(self, name: str, raw: npt.NDArray[np.uint8]) -> None:
        """Write the bytes of a tensor."""
        self.write_pieces(name, [raw])

    def write_pieces(self, name: str, pieces: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Write the bytes of a tensor that come one piece after the other."""
        slot = self._slots[name]
        done = 0
        for piece in pieces:
            if done + piece.nbytes <= slot.size_bytes:
                put(self._open[slot.file], slot.start + done, piece.reshape(-1).data)
            done += piece.nbytes
        if done != slot.size_bytes:
            raise ValueError(f"{name}: {done} bytes for a slot of {slot.size_bytes}")

    def copy(self, name: str, source: TensorInfo) -> None:
        """Copy a tensor of another checkpoint, of the same dtype; the kernel copies where it can."""
        slot = self._slots[name]
        if source.size_bytes != slot.size_bytes:
            raise ValueError(f"{name}: {source.size_bytes} bytes for a slot of {slot.size_bytes}")
        stream = self._open[slot.file]
        with source.file.open("rb") as original, naming(slot.file):
            done = _copy_range(original, stream, source, slot)
            original.seek(source.start + done)
            while done < slot.size_bytes:
                piece = original.read(min(_PIECE_BYTES, slot.size_bytes - done))
                if not piece:
                    raise TsconvertError(f"{source.file}: became shorter while it was read; start again")
                put(stream, slot.start + done, memoryview(piece))
                done += len(piece)

    def slot(self, name: str) -> TensorInfo:
        """Where a tensor's bytes lie."""
        return self._slots[name]

    def flush(self) -> None:
        """Sync everything written so far to the disk."""
        for stream in self._open.values():
            os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Flush and close the shards, also after an error: a resumed run continues with them."""
        try:
            self.flush()
        finally:
            for stream in self._open.values():
                stream.close()

    def _lay_out(self, file: Path, shard: Sequence[PlannedTensor]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        starts, offset = [], 0
        for tensor in shard:
            end = offset + tensor.size_bytes
            entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
            if before := header.get(tensor.whole or ""):
                before["shape"][0] += tensor.shape[0]
                before["data_offsets"][1] = end
            else:
                header[tensor.whole or tensor.name] = entry
            starts.append(offset)
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        base = 8 + len(text)
        for tensor, start in zip(shard, starts, strict=True):
            slot = TensorInfo(tensor.name, file, tensor.dtype, tensor.shape, base + start, tensor.size_bytes)
            self._slots[tensor.name] = slot
        stream = self._open[file] = file.open("r+b" if file.exists() else "w+b", buffering=0)
        put(stream, 0, memoryview(len(text).to_bytes(8, "little") + text))
        reserve(stream, base + offset)


def _copy_range(original: BinaryIO, stream: BinaryIO, source: TensorInfo, slot: TensorInfo) -> int:
    """Copy within the kernel (copy_file_range); returns the number of bytes, fewer than asked where it cannot."""
    done = 0
    try:
        while done < slot.size_bytes:
            count = os.copy_file_range(
                original.fileno(), stream.fileno(), slot.size_bytes - done, source.start + done, slot.start + done
            )
            if not count:
                break
            done += count
    except (AttributeError, OSError) as error:  # not on macOS; not between all file systems
        if getattr(error, "errno", None) in (*FULL, errno.EFBIG, errno.EIO):
            raise
    return done


def _split(plan: Sequence[PlannedTensor], max_shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in plan:
        parted = tensor.whole is not None and bool(shards[-1]) and shards[-1][-1].whole == tensor.whole
        if shards[-1] and not parted and size + tensor.size_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.size_bytes
    return shards
