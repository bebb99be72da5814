"""Tokens a second, from what a token reads: the model behind `tsconvert plan`. docs/plan.md holds it against runs.

    seconds a step = sum over parts of max(bytes / (share B), bytes / (cores C)), for rows here and there
                     max(bytes / (S B), bytes / (cores C)) + rows * W / cores;  + beyond memory / disk + layers * L

B is the memory's bandwidth, C what a core computes of a type, S the share of B at which rows here and there come, W
what such a row waits for, L what a layer costs besides: threads that meet, small work on one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ...model.spec import ModelSpec
from ...predictors.cost import Rates
from .machine import Machine
from .model_bytes import FileBytes, Read, TokenBytes, cache_bytes, token_bytes


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an engine uses a machine. The figures are fitted to measured runs, see docs/plan.md."""

    bandwidth_share: float
    """Share of the memory's bandwidth that streaming reaches."""
    scattered_share: float
    """S: the same in rows here and there."""
    row_s: float
    """W: what a core waits for each of these rows."""
    layer_s: float
    """L."""
    core_bytes_per_s: Mapping[str, float]
    """C: of each type what one core goes through; "" stands for all others."""

    def core_s(self, read: Read) -> float:
        """What one core computes at ``read``."""
        usual = self.core_bytes_per_s[""]
        return sum(size / self.core_bytes_per_s.get(kind, usual) for kind, size in read.types.items())


RUNNER = Engine(
    bandwidth_share=0.95, scattered_share=0.95, row_s=2e-8, layer_s=2e-5,
    core_bytes_per_s={"Q4_0": 33e9, "Q8_0": 32e9, "F16": 25e9, "Q4_K": 18e9, "Q6_K": 18e9, "": 15e9},
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one way to run a file would give."""

    type: str
    mode: str
    batch: int
    file_bytes: int
    memory_bytes: int
    """Weights, keys and values, and the program."""
    bytes_per_step: float
    seconds_per_step: float
    fits: bool
    """All of it into the machine's memory; else what does not is read from the disk for every step."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second of all sequences of the batch together."""
        return self.batch / self.seconds_per_step


_PROGRAM_BYTES = 250_000_000  # Python, Numba, compiled code, buffers


def seconds(read: TokenBytes, layers: int, machine: Machine, engine: Engine) -> float:
    """Time of a step whose weights are in memory."""
    time_s = layers * engine.layer_s
    for part in read.reads:
        share = engine.scattered_share if part.rows else engine.bandwidth_share
        time_s += max(part.size / (share * machine.bandwidth), engine.core_s(part) / machine.cores)
        time_s += part.rows * engine.row_s / machine.cores
    return time_s


def speed(
    spec: ModelSpec, size: FileBytes, machine: Machine, *, type_name: str, mode: str, rates: Rates, batch: int = 1,
    position: int = 512, engine: Engine = RUNNER,
) -> Speed:  # fmt: skip
    """What ``mode`` would give on ``machine``.

    Args:
        position: tokens in each sequence's cache, all of which a step reads.
    """
    read = token_bytes(spec, size, mode, rates, batch=batch)
    cache = batch * cache_bytes(spec, position)
    read = TokenBytes(reads=(*read.reads, Read(types={"F16": float(cache)})))
    memory = size.total + cache + _PROGRAM_BYTES
    missing = max(0.0, (memory - machine.memory_bytes) / size.total)
    time_s = seconds(read, spec.layers, machine, engine) + min(1.0, missing) * read.total / machine.disk_bytes_per_s
    return Speed(
        type=type_name, mode=mode, batch=batch, file_bytes=size.total, memory_bytes=memory, bytes_per_step=read.total,
        seconds_per_step=time_s, fits=memory <= machine.memory_bytes,
    )  # fmt: skip
