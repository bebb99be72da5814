"""How fast a GGUF file runs here: prompt and generation speed of each mode, in a table as llama-bench prints it."""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.errors import TsconvertError
from ...common.progress import progress
from ...common.results import Result
from ..config import BenchConfig
from ..density import weight_bytes
from ..kernels.bandwidth import measure_bandwidth
from ..model import Model, load, resolve_mode


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One mode's figures: medians over the repetitions."""

    mode: str
    prompt_tokens_per_s: float
    tokens_per_s: float
    prompt_deviation: float
    """Standard deviation of the prompt's speed over the repetitions."""
    deviation: float
    """Standard deviation of the generation's."""
    spread: float
    """Spread of the generation's repetitions: (largest - smallest) / median."""
    bytes_per_token: int
    """Bytes of weights that a generated token read."""
    bandwidth_share: float
    """Bytes of weights a second over what this machine reads."""
    density: dict[str, Any]
    """As `Density.to_json` has it, over the generated tokens."""


@dataclass(frozen=True, kw_only=True)
class BenchReport(Result):
    """All modes of one file."""

    file: str
    model: str
    """Architecture, size label and type, as far as the file says."""
    parameters: int
    size_bytes: int
    threads: int
    bandwidth: int
    """Bytes a second that this machine reads with as many threads."""
    prompt: int
    """As `BenchConfig` has it, and the next two."""
    generate: int
    repetitions: int
    rows: list[BenchRow]

    def __str__(self) -> str:
        head = ("model", "size", "params", "threads", "mode", "test", "t/s", "rows read", "MB/token", "of bandwidth")
        fixed = (self.model, f"{self.size_bytes / (1 << 20):,.2f} MiB", _count(self.parameters), str(self.threads))
        table = [head]
        for row in self.rows:
            read = (
                f"{row.density['rows_read']:.1%}", f"{row.bytes_per_token / 1e6:,.1f}", f"{row.bandwidth_share:.0%}"
            )  # fmt: skip
            if self.prompt:
                speed = f"{row.prompt_tokens_per_s:.2f} ± {row.prompt_deviation:.2f}"
                table.append((*fixed, row.mode, f"pp{self.prompt}", speed, "", "", ""))
            if self.generate:
                speed = f"{row.tokens_per_s:.2f} ± {row.deviation:.2f}"
                table.append((*fixed, row.mode, f"tg{self.generate}", speed, *read))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"| {' | '.join(map(str.ljust, cells, widths))} |" for cells in table]
        lines.insert(1, f"| {' | '.join('-' * width for width in widths)} |")
        tail = f"{self.file}: medians of {self.repetitions}; this machine reads {self.bandwidth / 1e9:.1f} GB/s"
        return "\n".join([*lines, tail])


def _count(number: int) -> str:
    """`7.24 B`, `134.52 M`, as llama-bench writes parameters."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def bench(config: BenchConfig) -> BenchReport:
    """Measure ``config.file`` in each mode; one untimed run warms compiled code and page cache.

    Raises:
        TsconvertError: the file cannot be run, or not in a mode that was asked for.
    """
    need = config.prompt + config.generate + 1
    with load(config.file, threads=config.threads, context=need) as model:
        modes = _modes(model, config.modes)
        rng = np.random.default_rng(config.seed)
        prompt = rng.integers(0, model.spec.vocab, max(1, config.prompt)).tolist()
        with progress("bench", len(modes) * config.repetitions) as step:
            bandwidth = measure_bandwidth(model.threads)
            rows = [_measure(model, mode, prompt, config, step, bandwidth) for mode in modes]
        return BenchReport(
            file=str(config.file),
            model=_described(model),
            parameters=model.spec.parameters,
            size_bytes=model.source.file.size_bytes,
            threads=model.threads,
            bandwidth=round(bandwidth),
            prompt=config.prompt,
            generate=config.generate,
            repetitions=config.repetitions,
            rows=rows,
        )


def _modes(model: Model, asked: Sequence[str]) -> list[str]:
    if "all" not in asked:
        return list(dict.fromkeys(resolve_mode(model.source, mode) for mode in asked))
    found = []
    for mode in ("dense", "exact", "predicted"):
        try:
            found.append(resolve_mode(model.source, mode))
        except TsconvertError:
            continue
    return found


def _described(model: Model) -> str:
    keys, name = model.source.file.metadata, model.source.dialect
    kinds = Counter(tensor.type_name for tensor in model.source.file.tensors.values() if len(tensor.shape) > 1)
    label = str(keys.get("general.size_label", ""))
    return " ".join(part for part in (name, label, kinds.most_common(1)[0][0]) if part)


def _deviation(tokens: int, seconds: Sequence[float]) -> float:
    return round(statistics.stdev(tokens / taken for taken in seconds), 2) if len(seconds) > 1 else 0.0


def _measure(model: Model, mode: str, prompt: list[int], config: BenchConfig, step: Any, bandwidth: float) -> BenchRow:
    model.mode = mode
    model.reset()
    model.feed(prompt[:2])
    prompt_s, generate_s = [], []
    for _ in range(config.repetitions):
        model.reset()
        start_s = time.perf_counter()
        logits_V = model.feed(prompt)
        prompt_s.append(time.perf_counter() - start_s)
        model.reset_density()
        start_s = time.perf_counter()
        for _ in range(config.generate):
            logits_V = model.feed([int(np.argmax(logits_V))])
        generate_s.append(time.perf_counter() - start_s)
        step(mode)
    middle = statistics.median(generate_s)
    size = weight_bytes(model.source, model.density, mode)
    return BenchRow(
        mode=mode,
        prompt_deviation=_deviation(config.prompt, prompt_s),
        deviation=_deviation(config.generate, generate_s),
        bytes_per_token=round(size),
        bandwidth_share=round(size * config.generate / middle / bandwidth, 3) if config.generate else 0.0,
        prompt_tokens_per_s=round(config.prompt / statistics.median(prompt_s), 2),
        tokens_per_s=round(config.generate / middle, 2) if config.generate else 0.0,
        spread=round((max(generate_s) - min(generate_s)) / middle, 3) if config.generate else 0.0,
        density=model.density.to_json(),
    )
