"""What a sparse model of some shape would do on this machine: `bench --shape`, on planted weights, before any training.

Two files of a few layers each, of which the second has twice the layers: the difference is what the layers cost, the
rest is the head's; both together give the whole model's time.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import TsconvertError
from ...common.progress import progress
from ...common.results import Result
from ...common.units import size_text
from ...model.named_config import read_model_config
from ...model.spec import ModelSpec
from ...predictors.cost import check_rank, default_rank
from ..config import ShapeConfig
from ..density import weight_bytes
from ..kernels.bandwidth import measure_bandwidth
from ..model import Model, load
from . import llama_cpp_bench
from .planted_model import SMALLEST_WIDTH, Shape, write_planted

_BYTES = 1 << 30  # of the larger file's layers, about
_MOST_LAYERS = 4  # of the smaller file
MODES = ("dense", "exact", "predicted")


@dataclass(frozen=True, kw_only=True)
class ShapeRow:
    """One mode of the whole model."""

    mode: str
    tokens_per_s: float
    spread: float
    """(largest - smallest) / median over the repetitions."""
    bytes_per_token: int
    """Bytes of weights."""
    bandwidth_share: float
    """Bytes of weights a second over what this machine reads."""
    fired: float
    """Share of the neurons that were computed and not zero."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """llama.cpp's dense model of the same shape and type."""

    program: str
    """`llama-bench` or `xllamacpp`, whose build may not be this processor's own."""
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class ShapeReport(Result):
    """All modes of one shape."""

    model: str
    shape: Shape
    layers_measured: tuple[int, int]
    threads: int
    bandwidth: float
    """Bytes a second that this machine reads with as many threads."""
    repetitions: int
    rows: list[ShapeRow]
    llama_cpp: Peer | None = None
    """None where llama.cpp is not installed."""

    def __str__(self) -> str:
        s, dense = self.shape, self.rows[0].tokens_per_s
        experts = f", {s.experts_per_token} of {s.experts} experts" if s.experts else ""
        head = (
            f"{self.model}: {s.layers} layers{experts}, {s.type_name}; {s.firing:.0%} of the neurons fire,"
            f" {s.predicted:.0%} are predicted (rank {s.rank}, {s.predictor_type})"
        )
        lines = [
            head,
            f"{'mode':<10} {'tokens/s':>9} {'x dense':>8} {'read/token':>11} {'of bandwidth':>12}",
        ]
        lines += [
            f"{row.mode:<10} {row.tokens_per_s:>9.2f} {row.tokens_per_s / dense:>8.2f}"
            f" {size_text(row.bytes_per_token):>11} {row.bandwidth_share:>12.0%}"
            for row in self.rows
        ]
        if self.llama_cpp is not None:
            name, speed = f"llama.cpp, dense ({self.llama_cpp.program})", self.llama_cpp.tokens_per_s
            lines.append(f"{name}: {speed:.2f} tokens/s, {speed / dense:.2f} x dense")
        few, more = self.layers_measured
        tail = (
            f"from {few} and {more} layers of random weights with planted activity, medians of {self.repetitions};"
            f" {self.threads} threads, this machine reads {self.bandwidth / 1e9:.1f} GB/s"
        )
        return "\n".join([*lines, tail])


def bench_shape(config: ShapeConfig) -> ShapeReport:
    """Measure the shape that ``config`` describes in all three modes.

    Raises:
        TsconvertError: the config cannot be read, or nothing can be planted in a model so narrow.

    Example:
        >>> print(bench_shape(ShapeConfig(model="mistral/config.json", density=0.1)))  # doctest: +SKIP
    """
    spec = read_model_config(config.model)[1]
    shape = planted_shape(spec, config)
    few = max(1, min(_MOST_LAYERS, spec.layers // 2 or 1, _BYTES // (2 * shape.layer_bytes)))
    counts = (few, 2 * few)
    with tempfile.TemporaryDirectory(prefix="tsconvert-shape-") as folder:
        models: list[Model] = []
        try:
            for layers in counts:
                file = write_planted(
                    Path(folder) / f"{layers}.gguf", "sparse", replace(shape, layers=layers), config.seed
                )
                models.append(load(file, threads=config.threads, context=config.generate + 4))
            threads, bandwidth = models[0].threads, measure_bandwidth(models[0].threads)
            with progress("bench", len(MODES) * config.repetitions) as step:
                rows = [_measure(models, counts, mode, shape, config, bandwidth, step) for mode in MODES]
        finally:
            for model in models:
                model.close()
        peer = _beside(Path(folder), shape, counts, threads, config)
    return ShapeReport(
        model=config.model, shape=shape, layers_measured=counts, threads=threads, bandwidth=bandwidth,
        repetitions=config.repetitions, rows=rows, llama_cpp=peer,
    )  # fmt: skip


def _beside(folder: Path, shape: Shape, counts: tuple[int, int], threads: int, config: ShapeConfig) -> Peer | None:
    """llama.cpp's speed on dense files of as many layers."""
    name = llama_cpp_bench.program()
    if name is None:
        return None
    times: list[float] = []
    for layers in counts:
        file = folder / "dense.gguf"
        write_planted(file, "llama.cpp", replace(shape, layers=layers), config.seed)
        time_s = llama_cpp_bench.token_s(file, threads, config.generate)
        file.unlink()
        if time_s is None:
            return None
        times.append(time_s)
    (few, more), (shorter_s, longer_s) = counts, times
    whole_s = longer_s + (shape.layers - more) * (longer_s - shorter_s) / (more - few)
    return Peer(program=name, tokens_per_s=round(1 / whole_s, 2)) if whole_s > 0 else None


def planted_shape(spec: ModelSpec, config: ShapeConfig) -> Shape:
    """The shape of ``spec`` with the activity that ``config`` asks for.

    Raises:
        TsconvertError: its rows are shorter than what is planted in them.
    """
    if spec.width < SMALLEST_WIDTH or spec.width % 32 or spec.neurons % 32:
        raise TsconvertError(
            f"{config.model}: {spec.width} wide with {spec.neurons} neurons; activity is planted in models of at least"
            f" {SMALLEST_WIDTH} and multiples of 32"
        )
    predicted = min(1.0, 1.2 * config.density) if config.predicted is None else config.predicted
    check_rank(spec, config.rank)
    rank = config.rank or default_rank(spec)
    return Shape(
        layers=spec.layers, width=spec.width, neurons=spec.neurons, heads=spec.heads, kv_heads=spec.kv_heads,
        head_dim=spec.head_dim, vocab=spec.vocab, experts=spec.experts, experts_per_token=spec.experts_per_token,
        rank=max(32, rank // 32 * 32), type_name=config.type_name, predictor_type=config.predictor_type,
        gate_open=min(1.0, 1.9 * config.density), firing=config.density, predicted=predicted,
    )  # fmt: skip


def _measure(
    models: list[Model], counts: tuple[int, int], mode: str, shape: Shape, config: ShapeConfig, bandwidth: float,
    step: Any,
) -> ShapeRow:  # fmt: skip
    """Seconds and bytes of a token of the whole model, by the line through both files' figures."""
    few, more = counts
    seconds, sizes = [], [0.0, 0.0]
    for _ in range(config.repetitions):
        times = []
        for at, model in enumerate(models):
            times.append(decode(model, mode, config.generate))
            sizes[at] = weight_bytes(model.source, model.density, mode)
        layer_s = (times[1] - times[0]) / (more - few)
        seconds.append(times[1] + (shape.layers - more) * layer_s)
        step(mode)
    size = sizes[1] + (shape.layers - more) * (sizes[1] - sizes[0]) / (more - few)
    middle = statistics.median(seconds)
    return ShapeRow(
        mode=mode,
        tokens_per_s=round(1 / middle, 2),
        spread=round((max(seconds) - min(seconds)) / middle, 3),
        bytes_per_token=round(size),
        bandwidth_share=round(size / middle / bandwidth, 3),
        fired=round(float(models[1].density.fired.mean()), 4),
    )


def decode(model: Model, mode: str, tokens: int) -> float:
    """Seconds a token, of random tokens: what a greedy text repeats would lie in caches."""
    model.mode = mode
    model.reset()
    ids = np.random.default_rng(1).integers(300, model.spec.vocab, tokens + 2).tolist()
    model.feed(ids[:2])
    model.reset_density()
    start_s = time.perf_counter()
    for token in ids[2:]:
        model.feed([token])
    return (time.perf_counter() - start_s) / tokens
