"""Tokens a second, from what a token reads: the model behind `tsconvert plan`. docs/plan.md holds it against runs.

    seconds a step = streamed / R + scattered / min(R, S B) + beyond memory / disk + layers * L

B is the memory's bandwidth. R is the rate at which an engine goes through rows that lie one behind the other: a share
of B, or what its cores compute, whichever is less. Rows here and there come at S B at most, for each waits for memory
anew. L is what a layer costs besides: threads that meet, small work on one of them.
"""

from dataclasses import dataclass

from ..convert.spec import ModelSpec
from ..predictors.cost import Rates
from .plan_bytes import FileBytes, TokenBytes, cache_bytes, token_bytes
from .plan_machine import Machine


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How an engine uses a machine. The figures are fitted to measured runs, see docs/plan.md."""

    bandwidth_share: float
    """Of the memory's bandwidth, in streaming."""
    core_bytes_per_s: float
    """That one core computes at most, of block types."""
    scattered: float
    """S: of the memory's bandwidth, in rows here and there."""
    layer_s: float
    """L."""


RUNNER = Engine(bandwidth_share=0.9, core_bytes_per_s=18e9, scattered=0.36, layer_s=2e-5)
LLAMA_CPP = Engine(bandwidth_share=1.0, core_bytes_per_s=25e9, scattered=1.0, layer_s=2e-5)


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
        """Of all sequences of the batch together."""
        return self.batch / self.seconds_per_step


_PROGRAM_BYTES = 250_000_000  # Python, Numba, compiled code, buffers


def stream_rate(machine: Machine, engine: Engine) -> float:
    """R, bytes a second."""
    return min(machine.bandwidth * engine.bandwidth_share, machine.cores * engine.core_bytes_per_s)


def seconds(read: TokenBytes, layers: int, machine: Machine, engine: Engine) -> float:
    """Time of a step whose weights are in memory."""
    rate = stream_rate(machine, engine)
    scattered_rate = min(rate, engine.scattered * machine.bandwidth)
    return read.streamed / rate + read.scattered / scattered_rate + layers * engine.layer_s


def speed(
    spec: ModelSpec,
    size: FileBytes,
    machine: Machine,
    *,
    type_name: str,
    mode: str,
    rates: Rates,
    batch: int = 1,
    position: int = 512,
    engine: Engine = RUNNER,
) -> Speed:
    """What ``mode`` would give on ``machine``.

    Args:
        position: tokens in each sequence's cache, all of which a step reads.
    """
    read = token_bytes(spec, size, mode, rates, batch=batch)
    cache = batch * cache_bytes(spec, position)
    read = TokenBytes(streamed=read.streamed + cache, scattered=read.scattered)
    memory = size.total + cache + _PROGRAM_BYTES
    missing = max(0.0, (memory - machine.memory_bytes) / size.total)
    time_s = seconds(read, spec.layers, machine, engine) + min(1.0, missing) * read.total / machine.disk_bytes_per_s
    return Speed(
        type=type_name, mode=mode, batch=batch, file_bytes=size.total, memory_bytes=memory, bytes_per_step=read.total,
        seconds_per_step=time_s, fits=memory <= machine.memory_bytes,
    )  # fmt: skip
