"""How fast a GGUF file runs here: prompt and generation speed of each mode, as llama-bench splits them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import TsconvertError
from ..convert.progress import progress
from .model import Model, load, resolve_mode


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    file: Path
    prompt: int = 128
    """Tokens read at once; 0 leaves that test out."""
    generate: int = 64
    """Tokens generated one by one; 0 leaves that test out."""
    repetitions: int = 5
    threads: int | None = None
    """None for the cores that the process may use."""
    modes: tuple[str, ...] = ("auto",)
    """`dense`, `exact`, `predicted`, `auto`, or `all` for every one that the file allows."""
    seed: int = 0
    """Of the prompt's random tokens."""

    def __post_init__(self) -> None:
        for name in ("prompt", "generate"):
            if getattr(self, name) < 0:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if self.repetitions < 1:
            raise TsconvertError(f"repetitions is {self.repetitions}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One mode's figures: medians over the repetitions."""

    mode: str
    prompt_tokens_per_s: float
    tokens_per_s: float
    spread: float
    """Of the generation's repetitions: (largest - smallest) / median."""
    density: dict[str, Any]
    """As `Density.to_json` has it, over the generated tokens."""


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """All modes of one file."""

    file: str
    size_bytes: int
    threads: int
    config: BenchConfig
    rows: list[BenchRow]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        config = self.config
        return {
            "file": self.file, "size_bytes": self.size_bytes, "threads": self.threads, "prompt": config.prompt,
            "generate": config.generate, "repetitions": config.repetitions, "rows": [vars(row) for row in self.rows],
        }  # fmt: skip

    def __str__(self) -> str:
        config = self.config
        pp, tg = f"pp{config.prompt} t/s", f"tg{config.generate} t/s"
        lines = [
            f"{self.file}: {self.size_bytes / 1e6:,.1f} MB, {self.threads} threads, median of {config.repetitions}",
            f"{'mode':<10} {pp:>12} {tg:>12} {'rows read':>10} {'fired':>7} {'predicted':>10}",
        ]
        for row in self.rows:
            density = row.density
            lines.append(
                f"{row.mode:<10} {row.prompt_tokens_per_s:>12.1f} {row.tokens_per_s:>12.1f}"
                f" {density['rows_read']:>10.1%} {density['mean_fired']:>7.1%} {density['mean_predicted']:>10.1%}"
            )
        return "\n".join(lines)


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
            rows = [_measure(model, mode, prompt, config, step) for mode in modes]
        return BenchReport(
            file=str(config.file),
            size_bytes=model.source.file.size_bytes,
            threads=model.threads,
            config=config,
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


def _measure(model: Model, mode: str, prompt: list[int], config: BenchConfig, step: Any) -> BenchRow:
    model.mode = mode
    model.reset()
    model.feed(prompt[:2])
    prompt_s, generate_s = [], []
    for repetition in range(config.repetitions):
        model.reset()
        start_s = time.perf_counter()
        logits_V = model.feed(prompt)
        prompt_s.append(time.perf_counter() - start_s)
        if repetition == 0:
            model.reset_density()
        start_s = time.perf_counter()
        for _ in range(config.generate):
            logits_V = model.feed([int(np.argmax(logits_V))])
        generate_s.append(time.perf_counter() - start_s)
        step(mode)
    middle = statistics.median(generate_s)
    return BenchRow(
        mode=mode,
        prompt_tokens_per_s=round(config.prompt / statistics.median(prompt_s), 2),
        tokens_per_s=round(config.generate / middle, 2) if config.generate else 0.0,
        spread=round((max(generate_s) - min(generate_s)) / middle, 3) if config.generate else 0.0,
        density=model.density.to_json(),
    )
