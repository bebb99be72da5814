"""What `tsconvert predictors` is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from ..common.errors import TsconvertError
from ..text.sources import Source
from .cost import Bits
from .stored import BITS
from .training import Training

METHODS = ("low-rank", "svd", "sign")


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What `train_predictors` is asked to do."""

    model: str
    """A sparse checkpoint: dReLU or ReGLU."""
    out: Path | None = None
    """The predictor folder; None writes none."""
    data: tuple[Source, ...] = ()
    """Text to train on; empty takes the embedded text."""
    tokens: int = 65_536
    context: int = 512
    """Tokens a sequence."""
    rank: int | None = None
    """R; None searches for the width that reads the fewest bytes, FFN by FFN."""
    start: Path | None = None
    """A folder of trained predictors to go on from, of this model or of what it was before; their ranks are kept."""
    target_energy: float = 0.98
    """Share of the activation energy sum_j (h_j |down_j|)^2 (weighted: `Labels.energy_TF`) to be predicted, 0 to 1."""
    max_loss: float | None = None
    """Perplexity that predicted mode may cost, as a share of exact mode's: thresholds are set so (end_to_end.py),
    tighter than ``target_energy`` where that is needed. None: each FFN keeps its energy, whatever that costs."""
    max_density: float | None = None
    """Share of the neurons that may be predicted, 0 to 1; an FFN that needs more is named."""
    budget: float | None = None
    """Share of the model's parameters that predictors may have, 0 to 1; None is no limit."""
    method: str = "low-rank"
    """`low-rank`: trained. `svd`: truncated SVD of gate and up. `sign`: their sign bits, which no GGUF file holds."""
    everywhere: bool | None = None
    """A predictor for every FFN; False leaves those that do not pay to exact mode. None: True for a fixed rank."""
    training: Training = field(default_factory=Training)
    model_bits: float = 16.0
    """A weight's size as the model is going to be stored, for the cost model; the predictors' is their training's."""
    device: str = "cpu"
    seed: int = 0
    resume: bool = False
    """Go on with an interrupted run into the same ``out``."""
    dry_run: bool = False
    """Say what it would take, and stop."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise TsconvertError(f"method is {self.method!r}: it must be one of {', '.join(METHODS)}")
        if self.method == "sign" and self.rank is not None:
            raise TsconvertError(f"--rank {self.rank}: sign bits have no rank; leave it at auto")
        if self.start is not None and (self.rank is not None or self.method != "low-rank" or self.budget is not None):
            raise TsconvertError(
                f"--from {self.start}: its predictors keep the width that they have; leave --rank, --method and"
                " --budget away"
            )
        if self.rank is not None and self.rank < 2:
            raise TsconvertError(f"--rank {self.rank}: it must be at least 2, or auto")
        for name in ("target_energy", "max_loss", "max_density", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise TsconvertError(f"--{name.replace('_', '-')} {value:g}: it must lie between 0 and 1")

    @property
    def bits(self) -> Bits:
        """For the cost model."""
        return Bits(model=self.model_bits, predictor=BITS[self.training.stored_as])

    @property
    def needs_everywhere(self) -> bool:
        """No FFN may be left to exact mode because its predictor does not pay."""
        return self.rank is not None or self.start is not None if self.everywhere is None else self.everywhere
