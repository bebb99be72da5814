"""The machine that is planned for: described by a few numbers, or measured here."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import reserve
from ...runner.kernels.bandwidth import measure_bandwidth as measure_bandwidth
from .config import Described

_CORE_FLOPS = 8e10  # of a described core: 256-bit vectors, two multiply-adds a cycle, at 2.5 GHz
_DISK_BYTES_PER_S = 1e9  # of a described machine: an NVMe disk, files read and written
_WRITTEN_BYTES = 1 << 28
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the plan's times follow from."""

    bandwidth: float
    """Bytes a second that all cores together read from memory, one address after the other."""
    cores: int
    memory_bytes: int
    flops: float
    """Floating-point operations a second of a float32 matrix product on all cores."""
    disk_bytes_per_s: float
    disk_free_bytes: int | None = None
    """None where it is not known."""
    measured: tuple[str, ...] = ()
    """Names of the fields that were measured here."""

    def __str__(self) -> str:
        free = "" if self.disk_free_bytes is None else f" with {self.disk_free_bytes / 1e9:.0f} GB free"
        how = f" (measured: {', '.join(self.measured)})" if self.measured else ""
        return (
            f"{self.cores} cores, {self.bandwidth / 1e9:.1f} GB/s from {self.memory_bytes / 1e9:.0f} GB of memory,"
            f" {self.flops / 1e9:,.0f} GFLOP/s, disk {self.disk_bytes_per_s / 1e9:.1f} GB/s{free}{how}"
        )


def machine_of(said: Described) -> Machine:
    """The machine that ``said`` describes. Nothing said: this one, measured, with the disk of the current folder."""
    here = said.measure or (said.bandwidth_gb is None and said.cores is None and said.memory_bytes is None)
    if said.bandwidth_gb is None and not here:
        raise TsconvertError("--bandwidth is missing: say how fast the machine's memory is, or add --measure")
    cores = said.cores or len(os.sched_getaffinity(0))
    measured: list[str] = []

    def known(name: str, value: float | None, measure: Any, usual: float) -> float:
        if value is not None:
            return value * 1e9
        if here:
            measured.append(name)
            return float(measure())
        return usual

    bandwidth = known("bandwidth", said.bandwidth_gb, lambda: measure_bandwidth(cores), 0.0)
    flops = known("flops", said.gflops, measure_products, cores * _CORE_FLOPS)
    disk = known("disk", said.disk_speed_gb, lambda: measure_disk(Path.cwd()), _DISK_BYTES_PER_S)
    free = said.disk_free_bytes
    if free is None and here:
        free = shutil.disk_usage(Path.cwd()).free
    return Machine(
        bandwidth=bandwidth, cores=cores, flops=flops,
        memory_bytes=said.memory_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        disk_bytes_per_s=disk, disk_free_bytes=free, measured=tuple(measured),
    )  # fmt: skip


def measure_disk(folder: Path) -> float:
    """Bytes a second at which a file in ``folder`` is written and synced; its room is reserved first, as exports do."""
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, _WRITTEN_BYTES)
        piece = bytes(1 << 22)
        start_s = time.perf_counter()
        for _ in range(_WRITTEN_BYTES // len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
        return _WRITTEN_BYTES / (time.perf_counter() - start_s)


def measure_products(clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations a second of products of a layer's shape, the best of five, by ``clock``."""
    import torch

    left, right = torch.ones(1024, 4096), torch.ones(4096, 4096)
    best_s = float("inf")
    for _ in range(_ROUNDS):
        start_s = clock()
        float((left @ right)[0, 0])
        best_s = min(best_s, clock() - start_s)
    return 2 * left.shape[0] * right.numel() / best_s
