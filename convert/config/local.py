"""What `relufy --recover local` is asked to do."""

from dataclasses import dataclass, replace

from ...common.errors import TsconvertError

SILENCED_BY = ("threshold", "count", "l1")
_PASSING = 6  # times as many ups pass as neurons are to fire


@dataclass(frozen=True, kw_only=True)
class LocalRecovery:
    """How each layer is trained."""

    steps: int = 80
    batch_tokens: int = 1024
    learning_rate: float | None = None
    """AdamW's peak rate; a cosine takes it to zero. None: by the size of the weights (convert/learning_rate.py)."""
    train_attention: bool = True
    """Train the attention's output projection as well."""
    target_sparsity: float | None = None
    """Share of neurons to be silent, 0 to 1; also of the whole model's training. None: as many as are of themselves."""
    silenced_by: str = "threshold"
    """What brings the density there: `threshold`, up to which relu gives 0; or, for engines that have none, a price:
    `count`, on each neuron that fires, or `l1`, on how much it does."""
    up_passes: float | None = None
    """Under `tswiglu`: share of neurons, those whose ups promise the most (|up_j| |down_j| rms(silu(gate_j))), that may
    fire; other gate rows are not read then. 1: all, and the activations alone decide. None: six times as many as are
    to fire."""
    autocast: bool | None = None
    """Matrix products in bfloat16, sums and weights in float32. None: where the device multiplies bfloat16 itself."""

    def __post_init__(self) -> None:
        if self.target_sparsity is not None and not 0 < self.target_sparsity < 1:
            raise TsconvertError(f"--target-sparsity {self.target_sparsity:g}: it must lie between 0 and 1")
        if self.silenced_by not in SILENCED_BY:
            raise TsconvertError(f"silenced_by is {self.silenced_by!r}; choose one of {', '.join(SILENCED_BY)}")
        if self.up_passes is not None and not 1 - (self.target_sparsity or 1.0) <= self.up_passes <= 1:
            raise TsconvertError(
                f"--up-passes {self.up_passes:g}: it must lie between the share that is to fire, which is 1 less"
                " --target-sparsity, and 1"
            )
        if self.steps < 1 or self.batch_tokens < 1:
            raise TsconvertError(
                f"--steps {self.steps} and --batch-tokens {self.batch_tokens}: both must be at least 1"
            )

    @property
    def ups(self) -> float:
        """The share of neurons whose up lets them fire."""
        return min(1.0, _PASSING * (1 - (self.target_sparsity or 0.0))) if self.up_passes is None else self.up_passes

    def on(self, device: str) -> "LocalRecovery":
        """The same with the precision chosen for ``device``."""
        from ...common.machine.precision import multiplies_bfloat16

        return replace(self, autocast=multiplies_bfloat16(device)) if self.autocast is None else self
