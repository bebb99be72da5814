"""What `relufy --predictors` is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import TsconvertError
from ...predictors.config import Training
from ...predictors.cost import STORED_BITS, Bits


def joint_training(stored_as: str = Training.stored_as) -> Training:
    """The predictors' own training before the mask is used; shorter than alone, because it continues with the layer."""
    return Training(steps=250, stored_as=stored_as)


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """How predictors are trained together with the model."""

    out: Path
    """The predictor folder; must not exist."""
    start: Path | None = None
    """Predictors of a model that is sparse already, to go on from; full recovery only."""
    rank: int | None = None
    """R, the same for all FFNs; None: what gives predictors 4 % of the model's parameters, a multiple of 32."""
    target_energy: float = 0.98
    """Share of the activation energy (predictors/energy.py) that the predicted neurons are to carry."""
    masked_steps: float = 0.5
    """Share of a layer's training steps that use the mask: the last ones."""
    masked_share: float = 0.9
    """Full recovery: share of the sequences that see only the predicted neurons."""
    max_loss: float = 0.02
    """Full recovery: the loss of perplexity that predicted mode may have against exact mode, where thresholds can
    reach that."""
    training: Training = field(default_factory=joint_training)
    """The predictors' own training, before the mask is used."""

    @property
    def bits(self) -> Bits:
        """For the cost model."""
        return Bits(predictor=STORED_BITS[self.training.stored_as])

    def __post_init__(self) -> None:
        for name in ("target_energy", "masked_steps"):
            if not 0 < getattr(self, name) < 1:
                raise TsconvertError(f"{name} is {getattr(self, name):g}: it must lie between 0 and 1")
        if self.rank is not None and self.rank < 2:
            raise TsconvertError(f"--rank {self.rank}: it must be at least 2, or auto")
