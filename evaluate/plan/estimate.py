"""`tsconvert plan`: from a config.json alone, what a conversion takes and how fast the result would run.

docs/plan.md has the model and holds it against measured runs.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from ...common.units import duration, size_text
from ...model.named_config import read_model_config
from ...predictors.config import Training
from ...predictors.cost import check_rank, default_rank
from .config import PlanConfig
from .machine import Machine, machine_of
from .model_bytes import FileBytes, file_bytes, typical_rates
from .speed import Speed, speed
from .stages import Settings, Stage, stages

_DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """What `plan` reckons. Every figure is an estimate."""

    model: str
    parameters: int
    source_bytes: int
    rank: int
    density: float
    predicted: float
    batch: int
    machine: Machine
    files: dict[str, FileBytes]
    """Type -> the file's bytes, predictors included."""
    stages: list[Stage]
    speeds: list[Speed]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = asdict(self)
        for entry, found_speed in zip(self.speeds, found["speeds"], strict=True):
            found_speed["tokens_per_s"] = entry.tokens_per_s
        for name, size in self.files.items():
            found["files"][name]["total"] = size.total
        return found

    def __str__(self) -> str:
        head = f"{self.model}: {self.parameters / 1e9:.2f}B weights, checkpoint {size_text(self.source_bytes)}"
        lines = [head, f"machine: {self.machine}", "", f"{'stage':<22} {'memory':>10} {'disk':>10} {'time':>10}"]
        for stage in self.stages:
            disk = size_text(stage.disk_bytes + stage.scratch_bytes)
            line = f"{stage.name:<22} {size_text(stage.memory_bytes):>10} {disk:>10} {duration(stage.time_s):>10}"
            lines.append(line + (f"   DOES NOT FIT: {stage.problem}" if stage.problem else ""))
        shares = f"{self.density:.0%} of the neurons fire, {self.predicted:.0%} are predicted (rank {self.rank})"
        lines += [
            "",
            f"generation, {self.batch} at once; sparse modes: {shares}",
            f"{'type':<8} {'mode':<10} {'file':>10} {'memory':>10} {'read/step':>10} {'tokens/s':>9}",
        ]
        for row in self.speeds:
            line = (
                f"{row.type:<8} {row.mode:<10} {size_text(row.file_bytes):>10} {size_text(row.memory_bytes):>10}"
                f" {size_text(row.bytes_per_step):>10} {row.tokens_per_s:>9.1f}"
            )
            lines.append(line + ("" if row.fits else "   DOES NOT FIT: the rest is read from the disk"))
        return "\n".join(lines)


def plan(config: PlanConfig) -> PlanReport:
    """Reckon what converting ``config.model`` takes and what speed to expect.

    Raises:
        TsconvertError: the config cannot be read or describes no model that tsconvert converts, a type is not known, or
            the machine is not described.
    """
    content, spec = read_model_config(config.model)
    machine = machine_of(config.machine)
    source = spec.parameters * _DTYPE_BYTES.get(str(content.get("dtype") or content.get("torch_dtype")), 2)
    check_rank(spec, config.rank)
    rank = default_rank(spec) if config.rank is None else config.rank
    rates = typical_rates(config.density, config.predicted)
    sparse = spec if spec.sparse else replace(spec, activation="drelu")
    dense = {name: file_bytes(spec, name) for name in config.types}
    exact = {name: file_bytes(sparse, name) for name in config.types}
    files = {name: file_bytes(sparse, name, rank, Training.stored_as) for name in config.types}
    ways = (("dense", spec, dense), ("exact", sparse, exact), ("predicted", sparse, files))
    settings = Settings(tokens=config.tokens, context=min(config.context, spec.context), rank=rank, source_bytes=source)
    speeds = [
        speed(
            shape, sizes[name], machine, type_name=name, mode=mode, rates=rates, batch=config.batch,
            position=config.context,
        )
        for name in config.types
        for mode, shape, sizes in ways
    ]  # fmt: skip
    return PlanReport(
        model=config.model, parameters=spec.parameters, source_bytes=source, rank=rank, density=config.density,
        predicted=rates.predicted, batch=config.batch, machine=machine, files=files,
        stages=stages(spec, machine, settings, files, machine.disk_free_bytes), speeds=speeds,
    )  # fmt: skip
