"""How fast this machine reads its memory: what decoding is measured against."""

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

_BUFFER_BYTES = 1 << 29  # larger than any cache
_ROUNDS = 5


def measure_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read together: the best of five rounds over 512 MB."""
    buffer = np.ones(_BUFFER_BYTES // 8, np.int64)
    parts = np.array_split(buffer, threads)
    _sum(parts[0][:64])  # compiles
    best_s = float("inf")
    for _ in range(_ROUNDS):
        workers = [threading.Thread(target=_sum, args=(part,)) for part in parts[1:]]
        start_s = time.perf_counter()
        for worker in workers:
            worker.start()
        _sum(parts[0])
        for worker in workers:
            worker.join()
        best_s = min(best_s, time.perf_counter() - start_s)
    return buffer.nbytes / best_s


def _add(values: npt.NDArray[np.int64]) -> int:
    total = 0
    for value in values:
        total += value
    return total


_sum: Any = njit(nogil=True, cache=True)(_add)
