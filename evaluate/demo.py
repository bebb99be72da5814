"""`tsconvert demo`: the whole chain on one model, every stage for real, ending with text, a table and a page.

`OUT/figures` keeps what each measurement found, as `--json` prints it; `OUT/report.html` shows it all.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..common.files import refuse_existing, write_json
from ..common.progress import note
from ..common.units import size_text
from ..convert.config import RelufyConfig
from ..convert.full.config import FullRecovery
from ..convert.local.config import LocalRecovery
from ..convert.relufy import relufy
from ..model.checkpoint import open_checkpoint
from .config import DemoConfig
from .perplexity.config import EvalConfig
from .perplexity.evaluate import evaluate
from .records.eval_report import EvalReport, mean
from .report.config import ReportConfig
from .report.page import report

PROMPTS = ("The people of the United States", "The white whale", "The most important duty of the Congress is")
_MODES = ("dense", "exact", "predicted")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class DemoReport:
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
    """What does the same, stage by stage."""
    report: str = ""
    """The page."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"\n{self.model}, what each mode writes:"]
        for mode, texts in self.texts.items():
            lines += [f"  {mode:<10} {prompt} |{_one_line(text)}" for prompt, text in zip(PROMPTS, texts, strict=True)]
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


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """How much work the demo spends on a model."""

    tokens: int
    training: LocalRecovery
    full: FullRecovery
    look_tokens: int
    """For sign alignment alone, and for the profile."""
    rank: int
    target_energy: float
    score_tokens: int
    type_name: str


_TINY = _Recipe(
    tokens=65_536, training=LocalRecovery(steps=120, target_sparsity=0.88),
    full=FullRecovery(tokens=400_000, learning_rate=1.5e-3, cross_entropy=0.0, target_sparsity=0.88, evaluations=2),
    look_tokens=16_384, rank=32, target_energy=0.975, score_tokens=16_384, type_name="F16",
)  # fmt: skip
_LARGER = _Recipe(
    tokens=65_536, training=LocalRecovery(target_sparsity=0.85),
    full=FullRecovery(tokens=98_304, target_sparsity=0.87, evaluations=2),
    look_tokens=8_192, rank=96, target_energy=0.985, score_tokens=4_096, type_name="Q8_0",
)  # fmt: skip


def demo(config: DemoConfig) -> DemoReport:
    """Run every stage of the chain on ``config.model`` and report what each did.

    Raises:
        TsconvertError: as the stages do; ``config.out`` exists.
    """
    refuse_existing(config.out)
    config.out.mkdir(parents=True)
    run = _Run(config.out)
    model = run.dense = config.model
    if model == "smollm2":
        from ..model.gguf_import import import_smollm2

        model = run.dense = str(run.stage("import", lambda: import_smollm2(config.out / "dense")))
    checkpoint = open_checkpoint(model)
    recipe = _TINY if checkpoint.spec.parameters < 20e6 else _LARGER
    perplexity = {"dense": run.score(model, recipe).perplexity}
    perplexity |= _convert(run, model, recipe)
    files = _export(run, model, recipe, moe=bool(checkpoint.spec.experts))
    scores = {mode: run.score(str(files["sparse"]), recipe, mode) for mode in _MODES}
    perplexity |= {f"GGUF {recipe.type_name}, {mode}": score.perplexity for mode, score in scores.items()}
    texts = run.stage("generate", lambda: _generate(files["sparse"]))
    speeds = run.speeds(files["sparse"])
    predicted = scores["predicted"]
    found = DemoReport(
        model=config.model, perplexity=perplexity, density=predicted.density,
        predicted_density=predicted.predicted_density, recall=predicted.recall,
        sizes={path.name: path.stat().st_size for path in files.values()},
        speeds=speeds, texts=texts, stages=run.elapsed_s, commands=run.commands, report=str(config.out / "report.html"),
    )  # fmt: skip
    write_json(run.figures / "demo.json", found.to_json())
    report(ReportConfig(folder=config.out, out=config.out / "report.html"))
    return found


class _Run:
    """The stages: named on stderr, timed, their summaries shown."""

    def __init__(self, out: Path) -> None:
        self.out, self.figures, self.dense = out, out / "figures", ""
        self.logits = self.figures / "dense-logits.safetensors"
        """The dense model's predictions, that the others are held against; not kept."""
        self.elapsed_s: dict[str, float] = {}
        self.commands: list[str] = []

    def stage(self, name: str, work: Callable[[], Result], *, quiet: bool = True, command: str = "") -> Result:
        if command:
            self.commands.append(f"tsconvert {command}")
        start_s = time.monotonic()
        result = work()
        elapsed_s = time.monotonic() - start_s
        self.elapsed_s[name] = self.elapsed_s.get(name, 0.0) + elapsed_s
        note(f"-- {name} ({elapsed_s:.1f} s)" + ("" if quiet else f": {result}"))
        return result

    def score(self, model: str, recipe: _Recipe, mode: str = "auto") -> EvalReport:
        """Perplexity, and the divergence from the dense model, whose predictions are kept meanwhile."""
        first = model == self.dense
        self.figures.mkdir(exist_ok=True)
        config = EvalConfig(
            model=model, tokens=recipe.score_tokens, method="papers", mode=mode,
            save_logits=self.logits if first else None, against=None if first else str(self.logits),
        )  # fmt: skip
        asked = f"eval {model} --method papers --tokens {recipe.score_tokens}"
        asked += "" if mode == "auto" else f" --sparsity {mode}"
        found = self.stage(
            "eval", lambda: evaluate(config), quiet=False, command=asked if first else f"{asked} --against {self.dense}"
        )
        name = f"{Path(model).stem}-{mode}" if mode != "auto" else Path(model).name
        write_json(self.figures / f"eval-{name}.json", found.to_json())
        return found

    def speeds(self, file: Path) -> dict[str, float]:
        """Tokens per second of each mode."""
        from ..runner.bench import bench
        from ..runner.config import BenchConfig

        self.logits.unlink(missing_ok=True)
        asked = BenchConfig(file=file, prompt=64, generate=64, repetitions=3, modes=_MODES)
        found = self.stage("bench", lambda: bench(asked), command=f"bench {file} -p 64 -n 64 -r 3")
        write_json(self.figures / "bench.json", found.to_json())
        return {row.mode: row.tokens_per_s for row in found.rows}


def _convert(run: _Run, model: str, recipe: _Recipe) -> dict[str, float]:
    """Substitute, align, recover layer by layer and as a whole, predictors along; the perplexity of each."""
    from ..convert.masked.config import JointConfig

    out, target = run.out, recipe.training.target_sparsity
    substituted, aligned, local, sparse = (out / name for name in ("substituted", "aligned", "local", "sparse"))
    bare = RelufyConfig(model=model, out=substituted, recover="none", align=False)
    run.stage(
        "substitute", lambda: relufy(bare), quiet=False,
        command=f"relufy {model} --out {substituted} --recover none --no-align",
    )  # fmt: skip
    turned = RelufyConfig(model=model, out=aligned, recover="none", tokens=recipe.look_tokens)
    run.stage(
        "align", lambda: relufy(turned), quiet=False,
        command=f"relufy {model} --out {aligned} --recover none --tokens {recipe.look_tokens}",
    )  # fmt: skip
    along = JointConfig(out=out / "local-predictors", rank=recipe.rank, target_energy=recipe.target_energy)
    first = RelufyConfig(model=model, out=local, tokens=recipe.tokens, training=recipe.training, predictors=along)
    run.stage(
        "recover each layer", lambda: relufy(first), quiet=False,
        command=f"relufy {model} --out {local} --predictors {along.out} --rank {recipe.rank} --tokens {recipe.tokens}"
        f" --steps {recipe.training.steps} --target-energy {recipe.target_energy} --target-sparsity {target}",
    )  # fmt: skip
    full = recipe.full
    last = replace(along, out=out / "predictors", start=along.out)
    whole = replace(
        first, model=str(local), teacher=model, out=sparse, recover="full", full=full, predictors=last
    )  # fmt: skip
    run.stage(
        "recover the whole", lambda: relufy(whole), quiet=False,
        command=f"relufy {local} --teacher {model} --out {sparse} --from-predictors {along.out} --predictors {last.out}"
        f" --recover full --full-tokens {full.tokens} --cross-entropy {full.cross_entropy:g}"
        f" --evaluations {full.evaluations} --target-energy {recipe.target_energy}"
        f" --target-sparsity {full.target_sparsity}"
        + (f" --full-learning-rate {full.learning_rate:g}" if full.learning_rate else ""),
    )  # fmt: skip
    steps = {
        "dReLU substituted": substituted, "  and signs aligned": aligned, "  and each layer recovered": local,
        "  and the whole recovered": sparse,
    }  # fmt: skip
    return {name: run.score(str(folder), recipe).perplexity for name, folder in steps.items()}


def _export(run: _Run, model: str, recipe: _Recipe, *, moe: bool) -> dict[str, Path]:
    """Profile, and a file for each engine that can run the model."""
    from ..predictors.profile.config import ProfileConfig
    from ..predictors.profile.profile import profile
    from ..quant.config import ExportConfig
    from .export import export_gguf

    out, sparse = run.out, str(run.out / "sparse")
    seen = ProfileConfig(model=sparse, out=out / "profile.safetensors", tokens=recipe.look_tokens)
    run.stage(
        "profile", lambda: profile(seen), quiet=False,
        command=f"profile {sparse} --out {seen.out} --tokens {recipe.look_tokens}",
    )  # fmt: skip
    predictors = out / "predictors"
    exports = {
        "sparse": ExportConfig(
            model=sparse, out=out / f"sparse-{recipe.type_name}.gguf", predictors=predictors, type_name=recipe.type_name
        ),
        "sparse Q4_0": ExportConfig(
            model=sparse, out=out / "sparse-Q4_0.gguf", predictors=predictors, type_name="Q4_0"
        ),
        "llama.cpp": ExportConfig(model=model, out=out / f"dense-{recipe.type_name}.gguf", type_name=recipe.type_name),
    }
    if not moe:
        exports["powerinfer"] = ExportConfig(
            model=sparse, out=out / "powerinfer-F16.gguf", predictors=predictors, target="powerinfer"
        )
    for name, export in exports.items():
        asked = f"export-gguf {export.model} --out {export.out} --type {export.type_name}"
        asked += f" --predictors {predictors}" if export.predictors else ""
        asked += f" --target {export.target}" if export.target else ""
        run.stage("export", lambda export=export: export_gguf(export).require(), command=asked)  # type: ignore[misc]
        note(f"   {export.out.name} for {name}: {size_text(export.out.stat().st_size)}")
    return {name: export.out for name, export in exports.items()}


def _generate(file: Path) -> dict[str, list[str]]:
    """What each mode writes: the likeliest tokens, repetition penalised."""
    from ..runner.model import load
    from ..runner.sampling import Sampling

    texts: dict[str, list[str]] = {}
    with load(file, threads=os.cpu_count()) as model:
        for mode in _MODES:
            model.mode = mode
            answers = [model.generate(prompt, limit=64, sampling=Sampling(repeat_penalty=1.2)) for prompt in PROMPTS]
            texts[mode] = ["".join(piece.text for piece in answer) for answer in answers]
    return texts


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
