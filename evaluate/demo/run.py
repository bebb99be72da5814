"""`tsconvert demo`: the whole chain on one model, every stage for real, ending with text, a table and a page.

A stage is a command line, which is run in this process and shown on the page. `OUT/figures` keeps what each measurement
found, as `--json` prints it; `OUT/report.html` shows it all.
"""

import io
import os
import shlex
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...common.files import refuse_existing, write_json
from ...common.progress import note
from ...common.results import Result
from ...common.units import size_text
from ...convert.commands import relufy
from ...model.checkpoint import open_checkpoint
from ...predictors.profile.commands import profile
from ...runner.commands import bench
from ..commands import evaluate, export_gguf
from ..records.eval_report import EvalReport, mean
from ..report.config import ReportConfig
from ..report.page import report
from .config import DemoConfig

PROMPTS = ("The people of the United States", "The white whale", "The most important duty of the Congress is")
_MODES = ("dense", "exact", "predicted")
_COMMANDS = {command.name: command for command in (relufy, profile, export_gguf, evaluate, bench)}
Made = TypeVar("Made")

_CONVERSION = {
    "substitute": "relufy {model} --out {out}/substituted --recover none --no-align",
    "align": "relufy {model} --out {out}/aligned --recover none --tokens {few_tokens}",
    "recover each layer": "relufy {model} --out {out}/local --tokens 65536 {layers}"
    " --predictors {out}/local-predictors --rank {rank} --target-energy {energy}",
    "recover the whole": "relufy {out}/local --out {out}/sparse --teacher {model} --recover full --tokens 65536 {whole}"
    " --evaluations 2 --from-predictors {out}/local-predictors --predictors {out}/predictors --target-energy {energy}",
}
_SPARSE_FILE = "export-gguf {out}/sparse --predictors {out}/predictors --out {out}/"
_EXPORTS = {
    "sparse": _SPARSE_FILE + "sparse-{type}.gguf --type {type}",
    "sparse Q4_0": _SPARSE_FILE + "sparse-Q4_0.gguf --type Q4_0",
    "llama.cpp": "export-gguf {model} --out {out}/dense-{type}.gguf --type {type}",
}
_TINY = {
    "few_tokens": 16_384, "rank": 32, "energy": 0.975, "scored_tokens": 16_384, "type": "F16",
    "layers": "--steps 240 --target-sparsity 0.88",
    "whole": "--full-tokens 400000 --full-learning-rate 0.001 --target-sparsity 0.88",
}  # fmt: skip
_LARGER = {
    "few_tokens": 8_192, "rank": 96, "energy": 0.985, "scored_tokens": 4_096, "type": "Q8_0",
    "layers": "--target-sparsity 0.85",
    "whole": "--full-tokens 98304 --target-sparsity 0.87",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DemoReport(Result):
    """What came out."""

    model: str
    perplexity: dict[str, float]
    """On text held out from recovery: dense, substituted, aligned, recovered layer by layer and as a whole, and the
    GGUF file's three modes."""
    density: list[float]
    """Share of neurons that fire, per layer."""
    predicted_density: list[float]
    recall: list[float]
    sizes: dict[str, int]
    """Bytes of each file."""
    speeds: dict[str, float]
    """Tokens per second of each mode."""
    texts: dict[str, list[str]]
    """What each mode makes of the prompts."""
    stages: dict[str, float]
    """Seconds of each stage."""
    prompts: tuple[str, ...] = PROMPTS
    commands: list[str] = field(default_factory=list)
    """The stages' command lines."""
    report: str = ""
    """The page."""

    def __str__(self) -> str:
        lines = [f"\n{self.model}, what each mode writes:"]
        for mode, texts in self.texts.items():
            for prompt, text in zip(PROMPTS, texts, strict=True):
                lines.append(f"  {mode:<10} {prompt} |" + text.replace("\n", " "))
        lines.append("\nperplexity on held-out text")
        dense = self.perplexity["dense"]
        for name, value in self.perplexity.items():
            lines.append(f"  {name:<42} {value:>14,.2f} {value / dense:>12,.2f} x dense")
        lines.append("\nlayer    fires    predicted    recall")
        rows = zip(self.density, self.predicted_density, self.recall, strict=True)
        lines += [
            f"{i:>5} {fires:>8.1%} {named:>12.1%} {recall:>9.1%}" for i, (fires, named, recall) in enumerate(rows)
        ]
        means = (mean(self.density), mean(self.predicted_density), mean(self.recall))
        lines.append(f" mean {means[0]:>8.1%} {means[1]:>12.1%} {means[2]:>9.1%}")
        lines.append("\nfile                                            size")
        lines += [f"  {name:<38} {size_text(size):>12}" for name, size in self.sizes.items()]
        lines.append("\nmode          tokens/s")
        lines += [f"  {mode:<10} {speed:>9.1f}" for mode, speed in self.speeds.items()]
        lines.append(
            f"\n{sum(self.stages.values()):.0f} s: " + ", ".join(f"{k} {v:.0f}" for k, v in self.stages.items())
        )
        lines.append(f"all of this with plots: {self.report}")
        return "\n".join(lines)


def demo(config: DemoConfig) -> DemoReport:
    """Run every stage of the chain on ``config.model`` and report what each did.

    Raises:
        TsconvertError: as the stages do; ``config.out`` exists.
    """
    refuse_existing(config.out)
    (config.out / "figures").mkdir(parents=True)
    run = _Run(config)
    perplexity = {"dense": run.score("{model}", "--method papers --tokens {scored_tokens} --save-logits {logits}")}
    for name, line in _CONVERSION.items():
        note(f"   {run.stage(name, line)}")
    perplexity |= {
        "dReLU substituted": run.score("{out}/substituted"),
        "  and signs aligned": run.score("{out}/aligned"),
        "  and each layer recovered": run.score("{out}/local"),
        "  and the whole recovered": run.score("{out}/sparse"),
    }
    note(f"   {run.stage('profile', 'profile {out}/sparse --out {out}/profile.safetensors --tokens {few_tokens}')}")
    files = {name: run.export(name, line) for name, line in _EXPORTS.items()}
    file = files["sparse"]
    scores = {mode: run.score("{out}/sparse-{type}.gguf", mode=mode) for mode in _MODES}
    run.logits.unlink()
    perplexity |= {f"GGUF {run.values['type']}, {mode}": score for mode, score in scores.items()}
    texts = run.timed("generate", lambda: _generate(file))
    speeds = run.stage("bench", "bench {out}/sparse-{type}.gguf -p 64 -n 64 -r 3")
    write_json(run.figures / "bench.json", speeds.to_json())
    predicted = scores["predicted"]
    found = DemoReport(
        model=config.model, perplexity={name: score.perplexity for name, score in perplexity.items()},
        density=predicted.density, predicted_density=predicted.predicted_density, recall=predicted.recall,
        sizes={path.name: path.stat().st_size for path in files.values()},
        speeds={row.mode: row.tokens_per_s for row in speeds.rows}, texts=texts, stages=run.elapsed_s,
        commands=run.commands, report=str(config.out / "report.html"),
    )  # fmt: skip
    write_json(run.figures / "demo.json", found.to_json())
    report(ReportConfig(folder=config.out, out=config.out / "report.html"))
    return found


class _Run:
    """The stages: named on stderr and timed."""

    def __init__(self, config: DemoConfig) -> None:
        self.figures = config.out / "figures"
        self.logits = self.figures / "dense-logits.safetensors"
        """The dense model's predictions, that the others are compared with; not kept."""
        self.elapsed_s: dict[str, float] = {}
        self.commands: list[str] = []
        model = config.model
        if model == "smollm2":
            from ...model.gguf_import import import_smollm2

            model = str(self.timed("import", lambda: import_smollm2(config.out / "dense")))
        spec = open_checkpoint(model).spec
        sizes = _TINY if spec.parameters < 20e6 else _LARGER
        paths = {"model": model, "out": config.out, "logits": self.logits}
        self.values = sizes | {name: shlex.quote(str(path)) for name, path in paths.items()}

    def stage(self, name: str, line: str) -> Any:
        """Run a command line, its {values} filled in; what the command found."""
        words = shlex.split(line.format_map(self.values))
        self.commands.append(shlex.join(["tsconvert", *words]))
        return self.timed(name, lambda: _call(words))

    def timed(self, name: str, work: Callable[[], Made]) -> Made:
        """Do ``work`` as the stage ``name``, and note how long it took."""
        start_s = time.monotonic()
        result = work()
        elapsed_s = time.monotonic() - start_s
        self.elapsed_s[name] = self.elapsed_s.get(name, 0.0) + elapsed_s
        note(f"-- {name} ({elapsed_s:.1f} s)")
        return result

    def score(self, model: str, how: str = "--against {logits}", mode: str = "") -> EvalReport:
        """Perplexity, and the divergence from the dense model."""
        found = self.stage("eval", f"eval {model} {how}" + (f" --sparsity {mode}" if mode else ""))
        note(f"   {found}")
        name = f"{Path(found.model).stem}-{mode}" if mode else Path(found.model).name
        write_json(self.figures / f"eval-{name}.json", found.to_json())
        text: EvalReport = found.text
        return text

    def export(self, engine: str, line: str) -> Path:
        """Write a GGUF file and verify it."""
        out: Path = self.stage("export", line).export.out
        note(f"   {out.name} for {engine}: {size_text(out.stat().st_size)}")
        return out


def _call(words: list[str]) -> Any:
    """What a command finds; what it prints is dropped."""
    command = _COMMANDS[words[0]]
    with redirect_stdout(io.StringIO()), command.make_context(words[0], words[1:]) as context:
        command.invoke(context)
        return context.obj


def _generate(file: Path) -> dict[str, list[str]]:
    """What each mode writes: the likeliest tokens, repetition penalised."""
    from ...runner.model import load
    from ...runner.sampling import Sampling

    texts: dict[str, list[str]] = {}
    with load(file, threads=os.cpu_count()) as model:
        for mode in _MODES:
            model.mode = mode
            answers = [model.generate(prompt, limit=64, sampling=Sampling(repeat_penalty=1.2)) for prompt in PROMPTS]
            texts[mode] = ["".join(piece.text for piece in answer) for answer in answers]
    return texts
