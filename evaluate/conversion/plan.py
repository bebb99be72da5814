"""What fits into a time: the stages of a conversion, how much text and how many steps, from a few measured rates.

The arithmetic is relufy's and plan's own (convert/cost.py, evaluate/plan/). It need not be right: the recovery of the
whole model, which takes most of the time, ends by the clock (`relufy --time-limit`), and the later stages are short.
"""

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...common.errors import TsconvertError
from ...common.units import duration, size_text
from ...convert.config import RelufyConfig
from ...convert.config.full import FullRecovery
from ...convert.config.local import LocalRecovery
from ...convert.config.masked import JointConfig
from ...convert.cost import relufy_cost
from ...model.spec import ModelSpec
from ...predictors.cost import default_rank
from ..plan.machine import Machine
from ..plan.model_bytes import FileBytes, file_bytes
from ..plan.stages import Settings, Stage, stages
from .config import ConvertConfig

SPARSE, PREDICTORS, LOGITS = "sparse", "predictors", "dense-logits.safetensors"
RECOVER = "recover"
_START_S = 12.0  # Python's libraries, the tokenizer, and the text through it
_RUNNER_START_S = 25.0  # the first time on a machine the runner's kernels are compiled
_STAGE_S = 2.0
_KEPT = 0.05  # of the budget, for what is reckoned wrong
_USUAL_WIDTH = 300  # at which evaluation reaches half of what large products do
_FORESEEN_WIDTH = 200  # at which predictors that are trained along double the cost (SmolLM2: a third more)
_LOCAL_TOKENS, _LOCAL_STEPS = 32_000, 80  # docs/benchmarks/recovery_research: more brings little before the whole model
_SCALES = (8.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.25)
_MOST_LOCAL = 2.0
_LOCAL_SHARE, _ALONE_SHARE = 0.25, 0.75  # of the time that local recovery may take, before the whole model's and alone
_THRESHOLD_TOKENS = 8_000
_LEAST_STEPS = 20
_EXTRA = 3.0  # times the tokens that are expected are asked for: the clock ends the training
_MOST_TOKENS = 50_000_000
_JUDGED_SHARE = 0.02  # of the budget, for one model's evaluation
_JUDGED = (2_048, 32_768)
_SMALL = 1e9  # weights; files of smaller models have a finer type
_PROMPT = "The first thing to know about the history of the world is"
_QUESTION = "What is the capital of France?"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a conversion."""

    name: str
    line: str
    """The command, with {model}."""
    time_s: float
    memory_bytes: int = 0
    disk_bytes: int = 0
    optional: bool = False
    """Left out where time has run short."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A conversion that fits."""

    model: str
    budget_s: float
    machine: Machine
    steps: tuple[Step, ...]
    why: str
    """Of the recovery, in a sentence."""

    @property
    def time_s(self) -> float:
        """What all of it is expected to take."""
        return sum(step.time_s for step in self.steps)

    def __str__(self) -> str:
        head = f"{self.model} within {duration(self.budget_s)}, on {self.machine}"
        lines = [head, f"{'stage':<12} {'time':>8} {'memory':>10} {'disk':>10}  command"]
        for step in self.steps:
            memory, disk = (size_text(size) if size else "" for size in (step.memory_bytes, step.disk_bytes))
            lines.append(f"{step.name:<12} {duration(step.time_s):>8} {memory:>10} {disk:>10}  tsconvert {step.line}")
        return "\n".join([*lines, self.why])


def plan_conversion(
    asked: ConvertConfig, spec: ModelSpec, source_bytes: int, machine: Machine, rate: float, *, talks: bool = False
) -> Plan:
    """The stages that bring ``spec`` as far as ``asked.budget_s`` allows.

    Args:
        source_bytes: of the checkpoint's weights.
        machine: this one; ``memory_bytes`` is what is free of it.
        rate: floating-point operations a second of training a model of that shape (`training_rate`).
        talks: the model has a chat template.

    Raises:
        TsconvertError: time, memory or disk do not suffice for anything useful; says what would.
    """
    assert asked.budget_s is not None
    found = _fitting(asked, spec, source_bytes, machine, rate, talks=talks)
    if found is None:
        needed_s = asked.budget_s
        while found is None:
            needed_s = 60 * math.ceil(1.05 * needed_s / 60)
            found = _fitting(replace(asked, budget_s=needed_s), spec, source_bytes, machine, rate, talks=talks)
        others = sum(step.time_s for step in found.steps if step.name != RECOVER)
        raise TsconvertError(
            f"--budget {duration(asked.budget_s)}: too little for anything useful from {asked.model} on this machine:"
            f" evaluation and export take {duration(others)}, recovery the rest of what would do; give --budget"
            f" {needed_s // 60}m or more"
        )
    memory = next(step.memory_bytes for step in found.steps if step.name == RECOVER)
    if memory > machine.memory_bytes:
        raise TsconvertError(
            f"{asked.model}: recovery needs {size_text(memory)} of memory and {size_text(machine.memory_bytes)} are"
            " free; convert it on a larger machine"
        )
    disk = sum(step.disk_bytes for step in found.steps)
    if machine.disk_free_bytes is not None and disk > machine.disk_free_bytes:
        raise TsconvertError(
            f"{asked.out}: needs {size_text(disk)} of disk and {size_text(machine.disk_free_bytes)} are free; make room"
            " or choose another --out"
        )
    return found


def _fitting(
    asked: ConvertConfig, spec: ModelSpec, source_bytes: int, machine: Machine, rate: float, *, talks: bool
) -> Plan | None:  # fmt: skip
    """The plan; None if the time is too short for one."""
    assert asked.budget_s is not None
    measures = _Measures(asked, spec, source_bytes, machine, talks=talks)
    before, after = measures.before(), measures.after()
    left_s = (1 - _KEPT) * asked.budget_s - sum(step.time_s for step in (*before, *after))
    recovery = _Recovery(asked, spec, source_bytes, machine, rate).within(left_s)
    if recovery is None:
        return None
    steps = (*before, recovery[0], *after)
    return Plan(model=str(asked.model), budget_s=asked.budget_s, machine=machine, steps=steps, why=recovery[1])


class _Recovery:
    """How much of a recovery fits."""

    def __init__(self, asked: ConvertConfig, spec: ModelSpec, source_bytes: int, machine: Machine, rate: float) -> None:
        self.asked, self.spec, self.source_bytes, self.machine = asked, spec, source_bytes, machine
        self.rate = rate
        if asked.foresees:
            self.rate /= 1 + _FORESEEN_WIDTH / spec.width

    def within(self, left_s: float) -> tuple[Step, str] | None:
        """The stage that takes ``left_s``, and why it is so; None if nothing useful does."""
        room = self._memory(self._config("full", 1.0, tokens=1)) <= self.machine.memory_bytes
        found = self._with_whole(self._scaled(left_s), left_s) if room else None
        if found is None and not (room and self.asked.activation == "tswiglu"):
            found = self._alone(left_s, room=room)
        return found

    def _scaled(self, left_s: float) -> RelufyConfig:
        """A recovery of the whole model behind as much local recovery as its share of the time allows."""
        if self.asked.activation == "tswiglu":
            return self._config("full", 0.0)
        most_s = _LOCAL_SHARE * left_s
        fitting = (
            each for each in _SCALES if each <= _MOST_LOCAL and self._time(self._config("local", each)) <= most_s
        )
        return self._config("full", next(fitting, _SCALES[-1]))

    def _with_whole(self, config: RelufyConfig, left_s: float) -> tuple[Step, str] | None:
        """A recovery of the whole model that ends by the clock; None if it would hardly begin."""
        base = replace(config, full=replace(config.full, tokens=1))
        local_s, token_s = self._time(base), self._time(replace(base, full=FullRecovery(tokens=1_001)))
        token_s = (token_s - local_s) / 1_000
        tokens = min(_MOST_TOKENS, int((left_s - local_s) / token_s))
        least = _LEAST_STEPS * FullRecovery.batch_tokens
        if tokens < least:
            return None
        planned = round(_EXTRA * tokens / least) * least
        config = replace(config, full=replace(config.full, tokens=planned))
        first = f"{config.tokens:,} tokens" + ("" if self.asked.activation == "tswiglu" else " layer by layer")
        why = (
            f"Recovery: {first}, then about {tokens:,} tokens of the whole model, whatever the clock allows; its speed"
            f" is reckoned at {1 / token_s:,.0f} tokens/s."
        )
        return self._step(config, left_s), why

    def _alone(self, left_s: float, *, room: bool) -> tuple[Step, str] | None:
        """As much local recovery as fits; None if too little does."""
        for scale in _SCALES:
            config = self._config("local", scale)
            time_s = self._time(config)
            if time_s <= _ALONE_SHARE * left_s:
                reason = "the time is too short" if room else "memory is too small"
                why = (
                    f"Recovery: {config.training.steps} steps of each layer alone, on {config.tokens:,} tokens; for"
                    f" training of the whole model {reason}."
                )
                return self._step(config, time_s), why
        return None

    def _config(self, recover: str, scale: float, tokens: int = FullRecovery.tokens) -> RelufyConfig:
        """A run of relufy; of ``scale`` 0 without training of single layers."""
        asked = self.asked
        steps, local = max(1, round(scale * _LOCAL_STEPS)), round(scale * _LOCAL_TOKENS)
        training = LocalRecovery(
            steps=steps, target_sparsity=asked.target_sparsity, up_passes=asked.up_passes, autocast=False
        )
        joint = JointConfig(out=Path(PREDICTORS)) if asked.foresees else None
        return RelufyConfig(
            model=str(asked.model), out=Path(SPARSE), activation=asked.activation, recover=recover,
            tokens=local or _THRESHOLD_TOKENS, context=min(512, self.spec.context), training=training,
            full=FullRecovery(tokens=tokens), predictors=joint, seed=asked.seed,
        )  # fmt: skip

    def _time(self, config: RelufyConfig) -> float:
        return relufy_cost(self.spec, self.source_bytes, self.source_bytes, config, self.rate).time_s

    def _memory(self, config: RelufyConfig) -> int:
        return relufy_cost(self.spec, self.source_bytes, self.source_bytes, config, self.rate).memory_bytes

    def _step(self, config: RelufyConfig, time_s: float) -> Step:
        asked, full = self.asked, config.recover == "full"
        words = ["relufy", "{model}", "--out", SPARSE, "--activation", asked.activation, "--recover", config.recover]
        words += ["--target-sparsity", f"{asked.target_sparsity:g}", "--tokens", str(config.tokens)]
        words += [] if asked.up_passes is None else ["--up-passes", f"{asked.up_passes:g}"]
        words += [] if asked.activation == "tswiglu" and full else ["--steps", str(config.training.steps)]
        words += ["--full-tokens", str(config.full.tokens), "--time-limit", f"{time_s:.0f}s"] if full else []
        words += ["--cross-entropy", "1"] if asked.activation == "tswiglu" and full else []  # measured there alone
        words += ["--evaluations", str(round(_EXTRA * FullRecovery.evaluations))] if full else []
        words += ["--predictors", PREDICTORS] if asked.foresees else []
        words += _data(asked.data)
        words += ["--seed", str(asked.seed)] if asked.seed else []
        checkpoints = 3 * 12 * self.spec.parameters if full else 0
        return Step(
            name=RECOVER, line=_line(words), time_s=time_s, memory_bytes=self._memory(config),
            disk_bytes=(2 if full else 1) * self.source_bytes + checkpoints,
        )  # fmt: skip


class _Measures:
    """The stages beside recovery."""

    def __init__(
        self, asked: ConvertConfig, spec: ModelSpec, source_bytes: int, machine: Machine, *, talks: bool
    ) -> None:
        self.asked, self.spec, self.source_bytes, self.machine = asked, spec, source_bytes, machine
        self.talks = talks
        self.type_name = asked.type_name or ("Q8_0" if spec.parameters < _SMALL else "Q4_0")
        self.file = f"{Path(str(asked.model)).stem or 'model'}-{asked.activation}-{self.type_name}.gguf"
        attention, ffn = spec.layer_weights
        weights = spec.layers * (attention + ffn // spec.ffns * spec.active_ffns) + spec.vocab * spec.width
        speed = machine.flops * spec.width / (spec.width + _USUAL_WIDTH)
        assert asked.budget_s is not None
        wanted = int(_JUDGED_SHARE * asked.budget_s * speed / (2 * weights))
        self.context = min(512, spec.context)
        self.tokens = min(max(wanted, _JUDGED[0]), _JUDGED[1]) // self.context * self.context
        self.score_s = _STAGE_S + 2 * weights * self.tokens / speed

    def before(self) -> list[Step]:
        """The dense model's evaluation: what the sparse one is held against."""
        words = ["eval", "{model}", "--tokens", str(self.tokens), "--ctx", str(self.context), "--save-logits", LOGITS]
        logits = 6 * 2048 * self.tokens
        return [Step(name="dense", line=_line([*words, *_data(self.asked.judge)]), time_s=_START_S + self.score_s,
                     memory_bytes=0, disk_bytes=logits)]  # fmt: skip

    def after(self) -> list[Step]:
        """The file, its quality, its speed and what it writes."""
        return [self._export(), *self._scores(), *self._tries()]

    def _export(self) -> Step:
        spec = self.spec if self.spec.sparse else replace(self.spec, activation=self.asked.activation)
        rank = default_rank(spec) if self.asked.foresees else 0
        size = file_bytes(spec, self.type_name, rank)
        words = ["export-gguf", SPARSE, "--out", self.file, "--type", self.type_name]
        words += ["--predictors", PREDICTORS] if self.asked.foresees else []
        stage = _export_stage(spec, self.machine, self.source_bytes, self.type_name, size)
        return Step(
            name="file", line=_line(words), time_s=_RUNNER_START_S + 3 * stage.time_s, memory_bytes=stage.memory_bytes,
            disk_bytes=stage.disk_bytes,
        )  # fmt: skip

    def _scores(self) -> Iterator[Step]:
        for mode in ("exact", "predicted") if self.asked.foresees else ("exact",):
            words = ["eval", self.file, "--sparsity", mode, "--against", LOGITS]
            yield Step(name=mode, line=_line(words), time_s=self.score_s)
        words = ["eval", self.file, "--tasks", "agreement", "--baseline", "dense={model}"]
        yield Step(name="tasks", line=_line(words), time_s=2 * self.score_s + 5, optional=True)

    def _tries(self) -> Iterator[Step]:
        spec = self.spec
        token_s = max(0.002, 2 * spec.parameters / self.machine.bandwidth)
        yield Step(
            name="speed", line=_line(["bench", self.file, "-p", "64", "-n", "32", "-r", "3"]),
            time_s=_STAGE_S + 3 * 3 * 48 * token_s, optional=True,
        )  # fmt: skip
        said = ["--chat", "-p", _QUESTION] if self.talks else ["-p", _PROMPT]
        words = ["run", self.file, *said, "-n", "48", "--temp", "0"]
        yield Step(name="text", line=_line(words), time_s=_STAGE_S + 48 * token_s, optional=True)


def _export_stage(spec: ModelSpec, machine: Machine, source_bytes: int, type_name: str, size: FileBytes) -> Stage:
    settings = Settings(tokens=1_024, source_bytes=source_bytes)
    return stages(spec, machine, settings, {type_name: size}, None)[-1]


def _data(sources: tuple[object, ...]) -> list[str]:
    return [word for source in sources for word in ("--data", _named(source))]


def _named(source: object) -> str:
    """A source as an option gives it; a path from the root, for stages run in another folder."""
    path, weight = source.path, source.weight  # type: ignore[attr-defined]
    path = str(Path(path).resolve()) if Path(path).exists() else path
    return path if weight == 1 else f"{path}={weight:g}"


def _line(words: list[str]) -> str:
    """The words as a shell takes them; {model} as it stands."""
    return " ".join(word if "{model}" in word and " " not in word else shlex.quote(word) for word in words)
