"""Products and sums of rows, GB/s a core: from the cache, from memory in line, and here and there (12 % of them).

    python benchmarks/runner_kernels.py Q4_0,Q8_0,Q4_K 576,4096 [--cores 2] [--rounds 9]

One process a core; before each measurement every one reads 320 MB of something else, or listed rows would still be in
the last cache, and then all begin at once, or one would be measured beside the other's reading. The first one's medians
are printed, the best rounds in brackets. The kernels are called by their addresses, as a step calls them, on 140 MB of
rows each, in pages of 2 MB.
"""

import argparse
import ctypes
import mmap
import multiprocessing
import os
import statistics
import time
from threading import Barrier

import numpy as np

from tsconvert.model.files.gguf import ggml
from tsconvert.runner.kernels import step  # noqa: F401  imports every function
from tsconvert.runner.kernels.parameters import SCRATCH_BYTES, new_parameters
from tsconvert.runner.kernels.weight_types import type_record

BYTES, CACHED_BYTES, CACHED_TIMES = 140 << 20, 147 << 10, 200
OTHER_BYTES = 320 << 20


def zeros(count: int) -> np.ndarray:
    """Bytes at the start of a cache line."""
    place = np.zeros(count + 64, np.uint8)
    start = -place.ctypes.data % 64
    return place[start : start + count]


def rows() -> np.ndarray:
    """BYTES of something, in large pages where the system has them."""
    place = mmap.mmap(-1, BYTES + (2 << 20))
    place.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(place, np.uint8)
    raw[:] = np.resize(np.random.default_rng(0).integers(0, 60, 1 << 20, dtype=np.uint8), len(raw))
    return raw


def measure(type_name: str, columns: int, raw: np.ndarray, rounds: int, ready: Barrier) -> dict[str, list[float]]:
    """GB/s of each way, round by round."""
    kind, params, stride = type_record(type_name), new_parameters(), ggml.row_bytes(type_name, columns)
    products = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 14)(int(kind["products"]))
    add = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 10)(int(kind["add"]))
    count, few = BYTES // stride, max(4, CACHED_BYTES // stride)
    x, out, scratch = zeros(8 * columns + (64 << 10)), zeros(4 * count), zeros(SCRATCH_BYTES + 4 * columns)
    x[:columns] = 3  # and scales of 0
    weights, into = np.ones(count, np.float32), zeros(4 * columns)
    lists = {
        "cache": np.tile(np.arange(few, dtype=np.int32), CACHED_TIMES),
        "in line": None,
        "listed": np.flatnonzero(np.random.default_rng(1).random(count) < 0.12).astype(np.int32),
    }
    found: dict[str, list[float]] = {what + name: [] for what in ("", "sums ") for name in lists}
    others = np.ones(OTHER_BYTES // 8, np.int64)

    def begin() -> float:
        others[:: 64 // 8].sum()
        ready.wait()
        return time.perf_counter()

    for _ in range(rounds):
        for name, listed in lists.items():
            some = count if listed is None else len(listed)
            start_s = begin()
            products(
                params.ctypes.data, kind.ctypes.data, raw.ctypes.data, stride,
                0 if listed is None else listed.ctypes.data, 0, some, columns, x.ctypes.data, 0, 0, 1,
                out.ctypes.data, 1, 0, scratch.ctypes.data,
            )  # fmt: skip
            took_s = time.perf_counter() - start_s
            start_s = begin()
            add(
                params.ctypes.data, kind.ctypes.data, raw.ctypes.data, stride,
                0 if listed is None else listed.ctypes.data, 0, some, some, weights.ctypes.data, columns,
                into.ctypes.data, scratch.ctypes.data,
            )  # fmt: skip
            found[name].append(some * stride / 1e9 / took_s)
            found["sums " + name].append(some * stride / 1e9 / (time.perf_counter() - start_s))
    return found


def work(core: int, speaks: bool, options: argparse.Namespace, ready: Barrier) -> None:
    """Measure on one core, with the others; print a line a type and width."""
    os.sched_setaffinity(0, {core})
    raw = rows()
    for type_name in options.types.split(","):
        for columns in map(int, options.columns.split(",")):
            if columns % ggml.TYPES[type_name].weights:
                continue
            found = measure(type_name, columns, raw, options.rounds, ready)
            said = [f"{name} {statistics.median(each):.1f} ({max(each):.1f})" for name, each in found.items()]
            if speaks:
                print(f"{type_name:<6} {columns:>6}  {', '.join(said)} GB/s", flush=True)


def main() -> None:
    """Start a process a core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types")
    parser.add_argument("columns")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    cores, context = sorted(os.sched_getaffinity(0))[: options.cores], multiprocessing.get_context("spawn")
    ready = context.Barrier(len(cores), timeout=60)  # one that died is not waited for
    processes = [context.Process(target=work, args=(core, core == cores[0], options, ready)) for core in cores]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
