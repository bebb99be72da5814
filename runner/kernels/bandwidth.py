"""How fast this machine reads its memory: what decoding is measured against.

A plain sum is one stream that the processor foresees as far as it likes to, and stays far below what several streams,
asked for ahead, bring in. What a machine likes differs, so a few ways of reading are tried, and the best one counts.
"""

import functools
import threading
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from .simd.emit import I64, LANES, Emit, emitted

_BUFFER_BYTES = 1 << 29  # larger than any cache
_ROUNDS = 2
_LINE = 64
_RUN_BYTES = 2048  # of a stream that are read before the next one has its turn
# Ways to read: how many streams a thread has, and how many bytes each is asked for ahead.
_WAYS = ((1, 0), (1, 4096), (1, 8192), (2, 4096), (4, 2048), (4, 4096))
_WORDS = ir.VectorType(I64, LANES // 2)


@emitted(types.int64, types.int64, types.int64)
def _read_run(e: Emit, address: Any, ahead: Any) -> Any:
    """Read _RUN_BYTES from an address on, asking for the lines ``ahead`` bytes further; returns their sum."""
    b, place = e.b, e.variable(e.all(_WORDS, 0))
    with e.loop(ir.Constant(I64, _RUN_BYTES // (8 * _LINE))) as index:
        line = b.add(address, b.mul(index, ir.Constant(I64, 8 * _LINE)))
        words = [e.load(_WORDS, line, _LINE * i) for i in range(8)]
        for i in range(8):
            e.prefetch(b.add(line, ahead), _LINE * i)
        b.store(b.add(b.load(place), _sum(b, words)), place)
    total = b.load(place)
    return _sum(b, [b.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(_WORDS.count)])


def _sum(builder: Any, values: list[Any]) -> Any:
    while len(values) > 1:
        values = [builder.add(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _read(address: int, size: int, streams: int, ahead: int) -> int:
    """The sum of ``size`` bytes as int64, of so many streams in turn."""
    part, total = size // streams, 0
    for offset in range(0, part, _RUN_BYTES):
        for stream in range(streams):
            total += _read_run(address + stream * part + offset, ahead)
    return total


@functools.cache
def _compiled() -> Any:
    try:
        return njit(nogil=True, cache=True)(_read)
    except RuntimeError:  # Numba found no folder that it may write to
        return njit(nogil=True)(_read)


def measure_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read together: the best of two rounds of each way, over 512 MB.

    It is that of this moment: of a machine with neighbours, 34 and 62 GB/s within a minute.
    """
    buffer, read = np.ones(_BUFFER_BYTES // 8, np.int64), _compiled()
    read(buffer.ctypes.data, 4 * _RUN_BYTES, 4, 0)  # compiles
    part = _BUFFER_BYTES // threads // (4 * _RUN_BYTES) * (4 * _RUN_BYTES)  # whole runs of any number of streams
    best_s = float("inf")
    for _ in range(_ROUNDS):
        for streams, ahead in _WAYS:
            jobs = [(buffer.ctypes.data + thread * part, part, streams, ahead) for thread in range(threads)]
            workers = [threading.Thread(target=read, args=job) for job in jobs[1:]]
            start_s = time.perf_counter()
            for worker in workers:
                worker.start()
            read(*jobs[0])
            for worker in workers:
                worker.join()
            best_s = min(best_s, time.perf_counter() - start_s)
    return part * threads / best_s
