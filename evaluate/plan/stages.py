"""What each stage of a conversion takes in memory, disk and time on a machine."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...common.cost import LIBRARIES_BYTES, Cost
from ...convert.config import RelufyConfig
from ...convert.config.local import LocalRecovery
from ...convert.cost import relufy_cost
from ...model.spec import ModelSpec
from ...model.sweep import IN_MEMORY_BYTES, batch_tokens
from ...predictors.config import PredictorConfig, Training
from ...predictors.train_cost import predictors_cost
from ...quant.types import mixes
from .machine import Machine
from .model_bytes import FileBytes

_EXPORT_BYTES = 300_000_000
_START_S = 5.0  # torch, transformers, the tokenizer, and the text through it
_EXPORT_START_S = 2.0
_LOOK_BYTES_PER_S = 2.5e9  # of a core: digest, and a look for NaN, over what is in the page cache
# Million weights a second that a core encodes, the file's most frequent type; docs/benchmarks/kquants has the K-quants.
_ENCODED_PER_S = {"Q2_K": 320e6, "Q3_K": 450e6, "Q4_K": 280e6, "Q5_K": 340e6, "Q6_K": 460e6}
_ENCODED_ELSE_PER_S = 2e9
_SLOW_PER_S = 5e6  # importance-weighted searches: IQ types
_PROFILE_FFNS, _IMATRIX_FFNS = 2.0, 5 / 3  # FFN passes a layer: its own, and what the visitor computes again


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command's cost."""

    name: str
    memory_bytes: int
    """Anonymous memory at its highest; pages of mapped files come on top and can be dropped."""
    disk_bytes: int
    """Bytes that it writes."""
    scratch_bytes: int
    """Bytes of temporary files beside that."""
    time_s: float
    problem: str = ""
    """Why it would not fit."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the stages are run."""

    tokens: int = 65_536
    """Calibration tokens of each stage."""
    context: int = 512
    rank: int = 0
    """Rank of the predictors."""
    source_bytes: int = 0
    """Bytes of the checkpoint."""
    recovery: LocalRecovery = field(default_factory=LocalRecovery)
    training: Training = field(default_factory=Training)
    """How predictors are trained."""


def stages(
    spec: ModelSpec, machine: Machine, settings: Settings, files: dict[str, FileBytes], disk_free_bytes: int | None
) -> list[Stage]:
    """The stages from ``spec`` to GGUF files, in the order in which they are run.

    Args:
        files: of each type that is to be exported.
    """
    found = [] if spec.sparse else [_relufy(spec, machine, settings)]
    found.append(_sweep("profile", spec, machine, settings, _PROFILE_FFNS, spec.layers * spec.ffns * spec.neurons * 8))
    found.append(_predictors(spec, machine, settings))
    columns = 4 * spec.width + spec.heads * spec.head_dim + spec.ffns * (2 * spec.width + spec.neurons)
    found.append(_sweep("imatrix", spec, machine, settings, _IMATRIX_FFNS, 4 * spec.layers * columns))
    found += [_export(spec, machine, settings, name, size) for name, size in files.items()]
    return [_judged(stage, machine, disk_free_bytes) for stage in found]


def _relufy(spec: ModelSpec, machine: Machine, settings: Settings) -> Stage:
    config = RelufyConfig(
        model="", out=Path(), tokens=settings.tokens, context=settings.context, training=settings.recovery
    )
    size = settings.source_bytes
    return _reported("relufy", relufy_cost(spec, size, size, config, machine.flops), _START_S)


def _predictors(spec: ModelSpec, machine: Machine, settings: Settings) -> Stage:
    config = PredictorConfig(
        model="", tokens=settings.tokens, context=settings.context, rank=settings.rank or None,
        training=settings.training,
    )  # fmt: skip
    read_s = settings.source_bytes / machine.disk_bytes_per_s
    return _reported("predictors", predictors_cost(spec, config, machine.flops), read_s + _START_S)


def _reported(name: str, cost: Cost, start_s: float) -> Stage:
    """A stage whose command's own --dry-run reports its cost."""
    return Stage(
        name=name, memory_bytes=cost.memory_bytes, disk_bytes=cost.disk_bytes, scratch_bytes=cost.scratch_bytes,
        time_s=cost.time_s + start_s,
    )  # fmt: skip


def _sweep(name: str, spec: ModelSpec, machine: Machine, settings: Settings, ffns: float, out_bytes: int) -> Stage:
    """A visitor on the layer sweep: the model's forward pass, and what the visitor computes again of each FFN."""
    attention, ffn = spec.layer_weights
    active = ffn // spec.ffns * spec.active_ffns
    scores = 2 * spec.heads * spec.head_dim * settings.context
    flops = 2 * settings.tokens * spec.layers * (attention + scores + ffns * active)
    hidden = 4 * settings.tokens * spec.width
    batch = min(settings.tokens, batch_tokens(spec))
    memory = LIBRARIES_BYTES + 4 * (attention + ffn) + 16 * batch * spec.neurons * spec.active_ffns
    in_memory = hidden <= IN_MEMORY_BYTES
    return Stage(
        name=name, memory_bytes=memory + hidden * in_memory, disk_bytes=out_bytes,
        scratch_bytes=0 if in_memory else hidden,
        time_s=flops / machine.flops + settings.source_bytes / machine.disk_bytes_per_s + _START_S,
    )  # fmt: skip


def _export(spec: ModelSpec, machine: Machine, settings: Settings, type_name: str, size: FileBytes) -> Stage:
    """Look at the source, encode, write: side by side, but on few cores they take each other's time."""
    base = mixes.MIXES.get(mixes.mix_named(type_name), type_name)
    rate = _SLOW_PER_S if base.startswith("IQ") else _ENCODED_PER_S.get(base, _ENCODED_ELSE_PER_S)
    encode_s = spec.parameters / (rate * machine.cores)
    look_s = settings.source_bytes / (_LOOK_BYTES_PER_S * machine.cores)
    write_s = size.total / machine.disk_bytes_per_s
    return Stage(
        name=f"export-gguf {type_name}", memory_bytes=_EXPORT_BYTES, disk_bytes=size.total, scratch_bytes=0,
        time_s=_EXPORT_START_S + look_s + encode_s + write_s,
    )  # fmt: skip


def _judged(stage: Stage, machine: Machine, disk_free_bytes: int | None) -> Stage:
    disk = stage.disk_bytes + stage.scratch_bytes
    problems = []
    if stage.memory_bytes > machine.memory_bytes:
        problems.append(
            f"needs {stage.memory_bytes / 1e9:.1f} GB of memory, the machine has {machine.memory_bytes / 1e9:.1f}"
        )
    if disk_free_bytes is not None and disk > disk_free_bytes:
        problems.append(f"needs {disk / 1e9:.1f} GB of disk, {disk_free_bytes / 1e9:.1f} are free")
    return replace(stage, problem="; ".join(problems))
