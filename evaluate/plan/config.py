"""What `plan` is asked."""

from dataclasses import dataclass, field

from ...common.errors import TsconvertError


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the user says of the machine; None is not said."""

    bandwidth_gb: float | None = None
    """GB/s that all cores together read from memory."""
    cores: int | None = None
    memory_bytes: int | None = None
    gflops: float | None = None
    """GFLOP/s of float32 matrix products on all cores."""
    disk_speed_gb: float | None = None
    """GB/s."""
    disk_free_bytes: int | None = None
    measure: bool = False
    """Measure what is not said, rather than take a usual value."""

    def __post_init__(self) -> None:
        for name, option in (("bandwidth_gb", "--bandwidth"), ("cores", "--cores"), ("memory_bytes", "--memory")):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TsconvertError(f"{option} is {value}: it must be more than 0")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What `plan` is asked."""

    model: str
    """A config.json, a folder, a GGUF file, an embedded model or a hub id, whose config.json alone is read."""
    types: tuple[str, ...] = ("F16", "Q8_0", "Q4_K_M", "Q4_0")
    density: float = 0.12
    """Share of neurons that fire once the model is sparse, 0 to 1."""
    predicted: float | None = None
    """Share that predictors name; None is 1.2 times the density."""
    rank: int | None = None
    """Rank of the predictors; None gives them 4 % of the model's weights."""
    batch: int = 1
    """Sequences generated at once."""
    context: int = 512
    """Tokens in each sequence's cache."""
    tokens: int = 64_000
    """Calibration tokens of each stage."""
    machine: Described = field(default_factory=Described)

    def __post_init__(self) -> None:
        for name in ("density", "predicted"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise TsconvertError(f"--{name} {value:g}: it must be above 0 and at most 1")
        if self.batch < 1:
            raise TsconvertError(f"--batch {self.batch}: it must be at least 1")
