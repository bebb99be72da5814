"""How many threads can run at once, and how long PyTorch's spin when they wait for each other."""

import os
from collections.abc import MutableMapping

_SPINS = "10000"  # some tens of microseconds; libgomp's own choice is 30 times as many


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make OpenMP's waiting threads sleep soon, unless the user set how they wait. Call it before torch is imported.

    At the end of each parallel loop libgomp's threads spin for a millisecond. Where another program has one of the
    cores, the thread that all wait for does not run meanwhile: beside two others on two cores a run took four times as
    long (docs/benchmarks/full_recovery_2cores_2026-11-23.md). libgomp reads GOMP_SPINCOUNT when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
