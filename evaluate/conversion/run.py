"""`tsconvert convert`: plan what fits, run it stage by stage, go on where a run was ended, and leave a whole folder.

A conversion is a recipe (evaluate/recipe/): planned here from a few measured rates, or given. Its stages are run in
this process; `OUT/convert.json` is their journal, `OUT/recipe.toml` what was planned and, at the end, what was done.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ...common import processes
from ...common.errors import CheckFailedError, TsconvertError
from ...common.files import atomic_file, refuse_existing
from ...common.locks import locked
from ...common.machine.precision import multiplies_bfloat16, training_rate
from ...common.progress import note
from ...common.units import duration
from ...model.checkpoint import open_checkpoint
from ...runner.kernels.bandwidth import measure_bandwidth
from ..plan.machine import Machine, measure_products
from ..recipe.recipe import Recipe, Stage, read_recipe
from ..recipe.stages import StageJournal, StageResult, run_stages
from ..report.config import ReportConfig
from ..report.page import report
from .card import write_card
from .clock import Clock, spent
from .config import ConvertConfig
from .plan import LOGITS, RECOVER, Plan, Step, plan_conversion
from .recipe_file import as_done, recipe_text
from .same_process import COMMANDS, SameProcess
from .summary import summary

JOURNAL, RECIPE, PAGE = "convert.json", "recipe.toml", "report.html"
_LOOKS = 5  # at the machine's speed: the best is taken, for too many tokens are cut off and too few are not made more
_SLOWEST = 5.0  # times as slow as planned a machine may turn out and the plan follow it


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What came out."""

    out: Path
    model: str
    plan: Plan | None
    stages: list[StageResult] = field(default_factory=list)
    spent_s: float = 0.0

    def require(self) -> None:
        """Raise if a verification failed.

        Raises:
            CheckFailedError: names the stage and what it found.
        """
        failed = [stage for stage in self.stages if stage.exit_code == 1]
        if failed:
            raise CheckFailedError("\n".join(f"{stage.name}: {stage.error}" for stage in failed))

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the plan, and what each stage found by its name."""
        return {
            "out": str(self.out), "model": self.model, "plan": asdict(self.plan) if self.plan else None,
            "spent_s": round(self.spent_s, 1), "report": str(self.out / PAGE) if self.stages else None,
            "stages": {stage.name: stage.result for stage in self.stages},
        }  # fmt: skip

    def __str__(self) -> str:
        if not self.stages:
            return f"would do\n{self.plan}"
        found = {stage.name: stage.result for stage in self.stages}
        lines = [summary(self.model, found), ""]
        times = ", ".join(f"{stage.name} {stage.elapsed_s:.0f}" for stage in self.stages)
        within = f" of {duration(self.plan.budget_s)}" if self.plan else ""
        lines += [f"{duration(self.spent_s)}{within}; seconds: {times}", f"all of it with plots: {self.out / PAGE}"]
        return "\n".join(lines)


def convert(config: ConvertConfig) -> ConvertReport:
    """Convert ``config.model`` within ``config.budget_s``, or as ``config.recipe`` says.

    Raises:
        TsconvertError: bad input, a budget that is too small, a folder that holds another conversion, or several
            processes of torchrun; finished stages stay for ``resume``.

    Example:
        >>> convert(ConvertConfig(model="tiny-mistral", out=Path("tiny"), budget_s=600))  # doctest: +SKIP
    """
    if processes.started() > 1:
        raise TsconvertError(
            "convert: is the work of one process on one machine; start it without torchrun, or relufy alone with it"
        )
    journal = config.out / JOURNAL
    goes_on = config.resume and journal.is_file()
    if not goes_on and not (config.resume and _hardly_begun(config.out)):
        refuse_existing(config.out)
    if config.dry_run:
        return ConvertReport(out=config.out, model=str(config.model), plan=_planned(config))
    with locked(config.out, config.out, folder=True):
        return _converted(config, journal, goes_on=goes_on)


def _hardly_begun(out: Path) -> bool:
    """Whether a run was ended before its first stage."""
    return out.is_dir() and all(path.name.startswith(RECIPE) for path in out.iterdir())


def _converted(config: ConvertConfig, journal: Path, *, goes_on: bool) -> ConvertReport:
    asked = _asked(config)
    state = _state(journal, asked) if goes_on else {}
    clock = Clock(spent(state, journal) if goes_on else 0.0)
    if goes_on:
        plan = _plan_of(state)
        note(f"going on after {duration(clock.spent_s)}")
    else:
        plan = _planned(config) if config.recipe is None else None
    if plan is not None:
        note(str(plan))
    recipe = _recipe(config, plan)
    model = _model(recipe, config)
    head = {
        "format": "tsconvert convert", "format_version": 1, "name": recipe.name, "model": model,
        "asked": asked, "plan": asdict(plan) if plan else None, **clock.state(),
    }  # fmt: skip
    stages = StageJournal(path=journal, head=head)
    with clock.beating(journal):
        results = _run(recipe, plan, stages, clock, goes_on=goes_on)
        found = ConvertReport(
            out=config.out, model=model, plan=plan, stages=results, spent_s=clock.spent_s
        )  # fmt: skip
        _finish(found, recipe, stages)
    return replace(found, spent_s=clock.spent_s)


def _run(
    recipe: Recipe, plan: Plan | None, journal: StageJournal, clock: Clock, *, goes_on: bool
) -> list[StageResult]:  # fmt: skip
    """Run the stages; with a plan, in its time."""
    steps = {step.name: step for step in plan.steps} if plan else {}
    budget_s = plan.budget_s if plan else 0.0

    slower = 1.0  # than planned, as far as it is known

    def limit(stage: Stage) -> float:
        names = list(steps)
        after_s = slower * sum(steps[name].time_s for name in names[names.index(stage.name) + 1 :])
        left_s = budget_s * (1 - _SPARE) - clock.spent_s - after_s
        note(f"   {duration(max(0.0, left_s))} are left for it")
        return left_s

    run = SameProcess(limit if plan else None)

    def in_time(stage: Stage, out: Path, *, begun: bool) -> StageResult:
        nonlocal slower
        step = steps.get(stage.name)
        if step is None:
            return run(stage, out, begun=begun)
        if step.optional and budget_s - clock.spent_s < slower * step.time_s:
            note(f"-- {stage.name} is left out: the time is over")
            return StageResult(name=stage.name, command=str(stage), exit_code=0, result={"left_out": True})
        found = run(stage, out, begun=begun)
        if step.name != RECOVER:
            slower = min(_SLOWEST, max(1.0, found.elapsed_s / step.time_s))
        return found

    return run_stages(recipe, journal, in_time, resume=goes_on)


_SPARE = 0.03  # of the budget, for what follows training within its stage: writing, the predictors' thresholds


def _finish(found: ConvertReport, recipe: Recipe, journal: StageJournal) -> None:
    """The recipe as it was done, the card and the page; what only the way there needed goes."""
    results = {stage.name: stage.result for stage in found.stages}
    if found.plan is not None:
        with atomic_file(found.out / RECIPE) as stream:
            stream.write(as_done(recipe.name, found.model, found.plan, results).encode())
    journal.write(found.stages, {"spent_s": round(found.spent_s, 1)})
    write_card(found.out, found.model, results)
    (found.out / LOGITS).unlink(missing_ok=True)
    report(ReportConfig(folder=found.out, out=found.out / PAGE))


def _planned(config: ConvertConfig) -> Plan:
    """The plan, from rates that are measured now."""
    if config.recipe is not None:
        raise TsconvertError("--dry-run: a recipe's stages are what it says; leave it out")
    source = open_checkpoint(str(config.model))
    if source.spec.sparse:
        raise TsconvertError(
            f"{config.model}: is {source.spec.activation} already; convert takes a dense model; for a sparse one see"
            " relufy --teacher and export-gguf"
        )
    note("measuring this machine ...")
    bf16 = multiplies_bfloat16("cpu")
    cores = torch.get_num_threads()
    spec = source.spec
    rate = max(training_rate(spec.width, spec.neurons, "cpu", bfloat16=bf16) for _ in range(_LOOKS))
    machine = Machine(
        bandwidth=measure_bandwidth(cores), cores=cores, memory_bytes=psutil.virtual_memory().available,
        flops=measure_products(), disk_bytes_per_s=1e9, disk_free_bytes=_free(config.out),
        measured=("bandwidth", "flops"),
    )  # fmt: skip
    return plan_conversion(config, spec, source.size_bytes, machine, rate, talks=_talks(source.folder))


def _free(out: Path) -> int:
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _talks(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (
        config.exists() and "chat_template" in config.read_text(encoding="utf-8", errors="replace")
    )


def _recipe(config: ConvertConfig, plan: Plan | None) -> Recipe:
    """The recipe to run: the plan's, written into the folder, or the one that was given."""
    options = {name: _options(command) for name, command in COMMANDS.items()}
    if plan is None:
        assert config.recipe is not None
        model = {} if config.model is None else {"model": str(config.model)}
        return read_recipe(config.recipe, out=config.out, variables={**config.variables, **model}, options=options)
    file = config.out / RECIPE
    with atomic_file(file) as stream:
        stream.write(recipe_text(config.out.name, plan.model, plan.steps).encode())
    return read_recipe(file, out=config.out, options=options)


def _options(command: Any) -> list[str]:
    return [option for param in command.params for option in (*param.opts, *param.secondary_opts)]


def _model(recipe: Recipe, config: ConvertConfig) -> str:
    return str(config.model or recipe.variables.get("model") or recipe.name)


def _asked(config: ConvertConfig) -> dict[str, str]:
    """The settings that a run which goes on must have again, as text."""
    return {key: str(value) for key, value in asdict(config).items() if key not in ("resume", "out", "dry_run")}


def _state(journal: Path, asked: dict[str, str]) -> dict[str, Any]:
    """What an earlier run left.

    Raises:
        TsconvertError: it was asked for something else, or its journal is damaged.
    """
    try:
        state = json.loads(journal.read_text(encoding="utf-8"))
        begun = state["asked"]
        float(state["began"]), float(state["spent_before_s"])
    except (OSError, ValueError, KeyError, TypeError):
        raise TsconvertError(f"{journal}: cannot be read; remove its folder and start again") from None
    differ = [key for key, value in asked.items() if begun.get(key) != value]
    if differ:
        raise TsconvertError(
            f"{journal.parent}: was begun with other settings ({', '.join(differ)}); repeat those, or choose another"
            " --out"
        )
    return dict(state)


def _plan_of(state: dict[str, Any]) -> Plan | None:
    found = state["plan"]
    if found is None:
        return None
    steps = tuple(Step(**step) for step in found["steps"])
    machine = Machine(**found["machine"] | {"measured": tuple(found["machine"]["measured"])})
    return Plan(**found | {"steps": steps, "machine": machine})
