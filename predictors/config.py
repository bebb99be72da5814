"""What `tsconvert predictors` is asked to do."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..common.errors import TsconvertError
from ..text.sources import Source
from .cost import STORED_BITS, Bits


@dataclass(frozen=True, kw_only=True)
class Training:
    """How each predictor is trained."""

    steps: int = 400
    batch_tokens: int = 512
    learning_rate: float = 3e-2
    """AdamW's peak rate for a model of width 128; fc1's falls with the root of the width, as its weights do."""
    stored_as: str = "Q4_0"
    """The type that the predictors are going to be stored in: Q4_0, Q8_0 or F16; training rounds to it."""
    floor: float = 0.1
    """Weight of a neuron that fires with next to no energy, against 1 for one of mean energy."""
    autocast: bool | None = None
    """Matrix products in bfloat16, sums and weights in float32. None: where the device multiplies bfloat16 itself."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens"):
            if getattr(self, name) < 1:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.stored_as not in STORED_BITS:
            raise TsconvertError(f"stored_as is {self.stored_as!r}: it must be one of {', '.join(STORED_BITS)}")
        if not self.learning_rate > 0:
            raise TsconvertError(f"learning_rate is {self.learning_rate}: it must be above 0")

    def on(self, device: str) -> "Training":
        """The same with the precision chosen for ``device``."""
        from ..common.machine.precision import multiplies_bfloat16

        return replace(self, autocast=multiplies_bfloat16(device)) if self.autocast is None else self


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What `train_predictors` is asked to do."""

    model: str
    """A sparse checkpoint: dReLU or ReGLU."""
    out: Path | None = None
    """The predictor folder; None writes none."""
    data: tuple[Source, ...] = ()
    """Text to train on; empty takes the embedded text."""
    tokens: int = 64_000
    context: int = 512
    """Tokens a sequence."""
    rank: int | None = None
    """R; None searches for the rank that reads the fewest bytes, FFN by FFN."""
    start: Path | None = None
    """A folder of trained predictors to go on from, of this model or an earlier state of it; they keep their ranks."""
    target_energy: float = 0.98
    """Share of the activation energy (energy.py) to be predicted, 0 to 1."""
    max_loss: float | None = None
    """Share of exact mode's perplexity that predicted mode may lose: thresholds are set so, tighter than
    ``target_energy`` where that is needed. None: each FFN keeps its energy, whatever that costs."""
    max_density: float | None = None
    """Share of the neurons that may be predicted, 0 to 1; an FFN that needs more is named."""
    budget: float | None = None
    """Share of the model's parameters that predictors may have, 0 to 1; None is no limit."""
    everywhere: bool | None = None
    """A predictor for every FFN; False leaves those that do not pay to exact mode. None: True for a fixed rank."""
    training: Training = field(default_factory=Training)
    model_bits: float = 16.0
    """Bits of a stored weight of the model, for the cost model; the predictors' follow from ``training``."""
    device: str = "cpu"
    seed: int = 0
    resume: bool = False
    """Go on with an interrupted run into the same ``out``."""
    dry_run: bool = False
    """Say what it would take, and stop."""

    def __post_init__(self) -> None:
        if self.start is not None and (self.rank is not None or self.budget is not None):
            raise TsconvertError(
                f"--from {self.start}: its predictors keep the width that they have; leave --rank and --budget away"
            )
        if self.rank is not None and self.rank < 2:
            raise TsconvertError(f"--rank {self.rank}: it must be at least 2, or auto")
        if not 0 < self.model_bits <= 32:
            raise TsconvertError(f"--model-bits {self.model_bits:g}: it must lie between 0 and 32")
        for name in ("target_energy", "max_loss", "max_density", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise TsconvertError(f"--{name.replace('_', '-')} {value:g}: it must lie between 0 and 1")

    @property
    def bits(self) -> Bits:
        """For the cost model."""
        return Bits(model=self.model_bits, predictor=STORED_BITS[self.training.stored_as])

    @property
    def needs_everywhere(self) -> bool:
        """No FFN may be left to exact mode because its predictor does not pay."""
        return self.rank is not None or self.start is not None if self.everywhere is None else self.everywhere
