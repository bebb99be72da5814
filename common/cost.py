"""What a stage takes in memory, disk and time: what `--dry-run` reports."""

from dataclasses import dataclass

from .results import Result
from .units import duration

COPY_BYTES_PER_S = 5e8
"""A checkpoint, read and written; disks differ."""
LIBRARIES_BYTES = 450_000_000
"""Memory of torch, transformers and the tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Cost(Result):
    """Bytes and seconds."""

    memory_bytes: int
    """Anonymous memory at its highest; pages of mapped files come on top and can be dropped."""
    memory: dict[str, int]
    """What it is made of."""
    disk_bytes: int
    """Size of the output."""
    scratch_bytes: int
    """Size of the mapped temporary files beside the output."""
    time_s: float
    rate: float | None
    """Floating-point operations a second that ``time_s`` assumes; measured. None: nothing is computed."""

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.memory.items())
        disk = f"disk {self.disk_bytes / 1e9:.2f} GB"
        if self.scratch_bytes:
            disk += f" and {self.scratch_bytes / 1e9:.2f} GB for the time of the run"
        basis = f"{self.rate / 1e9:,.0f} GFLOP/s, measured now" if self.rate else f"{COPY_BYTES_PER_S / 1e6:.0f} MB/s"
        return "\n".join(
            [
                f"memory {self.memory_bytes / 1e9:.2f} GB ({parts}), and pages of the mapped checkpoint",
                disk,
                f"time about {duration(self.time_s)} (at {basis})",
            ]
        )
