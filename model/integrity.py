"""One look at every value of a checkpoint: digest and largest magnitude, while the bytes pass through memory once.

The digest is BLAKE3: as strong as SHA-256, and several times faster where the processor has vectors. Looks run on
threads of their own, so that a command can read its tokenizer meanwhile.
"""

import os
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import blake3
import numpy as np
import numpy.typing as npt

_BITS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
INFINITE_BITS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""Of infinity; `Look.largest_bits` from there on is that, or NaN."""
_PIECE_BYTES = 1 << 23  # stays in the last cache for the second reading
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Look:
    """What was seen of a tensor."""

    digest: bytes
    """BLAKE3 of its bytes."""
    largest_bits: int
    """The bits of its largest magnitude, in its own type; NaN is above infinity."""


def look(raw: npt.NDArray[np.uint8], dtype: str) -> Look:
    """The look at a tensor's bytes; ``dtype`` is F32, F16 or BF16."""
    digest, largest = blake3.blake3(), 0
    for start in range(0, raw.size, _PIECE_BYTES):
        piece = raw[start : start + _PIECE_BYTES]
        digest.update(piece.data)
        largest = max(largest, largest_bits(piece.view(_BITS[dtype])))
    return Look(digest.digest(), largest)


def largest_bits(values: npt.NDArray[Any]) -> int:
    """The bits of the largest magnitude of floats, NaN above infinity: magnitudes are ordered as their bits are."""
    bits = values.reshape(-1).view(f"u{values.itemsize}")
    if not bits.size:
        return 0
    sign = 1 << (8 * bits.itemsize - 1)
    # as signed numbers the largest is the largest positive one, as unsigned the largest negative one
    above, below = int(bits.view(f"i{bits.itemsize}").max()), int(bits.max())
    return max(above, below - sign if below >= sign else 0, 0)


class Looks(Generic[Key]):
    """The looks at all tensors of a checkpoint, each taken once.

    Args:
        dtypes: of each tensor, in the order of the model.
        raw: gives a tensor's bytes.
    """

    def __init__(self, dtypes: Mapping[Key, str], raw: Callable[[Key], npt.NDArray[np.uint8]]) -> None:
        self._dtypes, self._raw = dtypes, raw
        self._found: dict[Key, Future[Look]] = {}
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._waiting = 0

    def __getitem__(self, key: Key) -> Look:
        return self._ask(key).result()

    def start(self) -> None:
        """Begin to look at everything, in the background."""
        for key in self._dtypes:
            self._ask(key)

    def stop(self) -> None:
        """Look at nothing more; what was seen stays known."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)  # without the lock, which a look takes at its end
        with self._lock:
            left = {key: future for key, future in self._found.items() if not future.cancelled()}
            self._waiting -= len(self._found) - len(left)
            self._found = left

    def _ask(self, key: Key) -> Future[Look]:
        with self._lock:
            if key not in self._found:
                self._pool = self._pool or ThreadPoolExecutor(os.cpu_count())
                self._found[key] = self._pool.submit(self._look, key)
                self._waiting += 1
            return self._found[key]

    def _look(self, key: Key) -> Look:
        try:
            return look(self._raw(key), self._dtypes[key])
        finally:
            self._end_if_last()

    def _end_if_last(self) -> None:
        """Threads that wait for nothing would be kept for as long as the checkpoint is."""
        with self._lock:
            self._waiting -= 1
            if not self._waiting and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None
