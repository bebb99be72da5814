"""A scan of every value of a checkpoint: digest and largest magnitude, while the bytes pass through memory once.

The digest is BLAKE3: as strong as SHA-256, and several times faster where the processor has vectors.
"""

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import blake3
import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from .dtypes import BITS

INFINITE_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""The bits of infinity; a `TensorScan.largest_bits` from there on is that, or NaN."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class TensorScan:
    """The result of scanning a tensor."""

    digest: bytes
    """BLAKE3 of its bytes."""
    largest_bits: int
    """The bits of its largest magnitude, in its own type; NaN is above infinity."""


def scan(pieces: Iterable[npt.NDArray[np.uint8]], dtype: str) -> TensorScan:
    """Scan a tensor's bytes, that come in ``pieces``; ``dtype`` is F32, F16 or BF16."""
    digest, largest = blake3.blake3(), 0
    for piece in pieces:
        digest.update(piece.data)
        largest = max(largest, largest_bits(piece.view(BITS[dtype])))
    return TensorScan(digest.digest(), largest)


def largest_bits(values: npt.NDArray[Any]) -> int:
    """The bits of the largest magnitude of floats, NaN above infinity: magnitudes are ordered as their bits are."""
    bits = values.reshape(-1).view(f"u{values.itemsize}")
    if not bits.size:
        return 0
    sign = 1 << (8 * bits.itemsize - 1)
    # as signed numbers the largest is the largest positive one, as unsigned the largest negative one
    above, below = int(bits.view(f"i{bits.itemsize}").max()), int(bits.max())
    return max(above, below - sign if below >= sign else 0, 0)


class TensorScans(Generic[Key]):
    """The scans of all tensors of a checkpoint, each made once.

    Args:
        dtypes: of each tensor, in the order of the model.
        pieces: gives a tensor's bytes, some at a time.
    """

    def __init__(self, dtypes: Mapping[Key, str], pieces: Callable[[Key], Iterable[npt.NDArray[np.uint8]]]) -> None:
        self._dtypes, self._pieces = dtypes, pieces
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._scans: dict[Key, Future[TensorScan]] = {}

    def __getitem__(self, key: Key) -> TensorScan:
        self.start()
        return self._scans[key].result()

    def start(self) -> None:
        """Begin to scan everything, on threads of their own: a command can read its tokenizer meanwhile."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(os.cpu_count())
                self._scans = {key: self._pool.submit(self._scan, key) for key in self._dtypes}
                self._pool.shutdown(wait=False)  # its threads end with the last scan

    def _scan(self, key: Key) -> TensorScan:
        return scan(self._pieces(key), self._dtypes[key])

    def stop(self) -> None:
        """Scan nothing more; the command has failed."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def not_finite(file: Path, name: str, values: npt.NDArray[np.float32]) -> TsconvertError:
    """The refusal of a tensor with NaN or infinity."""
    bad = ~np.isfinite(values).reshape(-1, values.shape[-1])
    row = int(np.argmax(bad.any(axis=1)))
    return TsconvertError(
        f"{file}: tensor {name} holds {int(bad.sum())} values that are NaN or infinite, the first in row"
        f" {row}; the weights are damaged or training diverged, go back to a sound checkpoint"
    )
