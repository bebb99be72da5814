"""What `relufy` is asked to do."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from ...common.errors import TsconvertError
from ...text.sources import Source
from .full import FullRecovery
from .local import LocalRecovery
from .masked import JointConfig

_FIRST_TOKENS = 8192  # that set the first thresholds of tswiglu


@dataclass(frozen=True, kw_only=True)
class RelufyConfig:
    """What `relufy` is asked to do."""

    model: str
    out: Path
    activation: str = "drelu"
    """`drelu`, `reglu`, or `tswiglu`: SwiGLU kept, and neurons silent that would add little."""
    recover: str = "local"
    """`none`, `local`, or `full`: local, then training of the whole model."""
    align: bool = True
    """Choose each neuron's sign first, so that dReLU keeps more of what SwiGLU does; under `tswiglu` the scale of its
    up, so that this says how much the neuron adds."""
    data: tuple[Source, ...] = ()
    """Text to align and recover on; empty takes the embedded text."""
    tokens: int = 64_000
    context: int = 512
    """Tokens a sequence."""
    teacher: str | None = None
    """The dense model to learn from; None is the model itself."""
    min_expert_tokens: int = 0
    """An expert that sees fewer is named and trained on further tokens, the router's next best; without training the
    run stops."""
    training: LocalRecovery = field(default_factory=LocalRecovery)
    full: FullRecovery = field(default_factory=FullRecovery)
    """The second stage of `full`."""
    predictors: JointConfig | None = None
    """Predictors to train together with the model, which learns under their mask; None: none."""
    shift: float | None = None
    """Share of the activations' energy to keep when thresholds are set as a last step (threshold.py); None: none."""
    dtype: str | None = None
    """`F32`, `F16` or `BF16` for the output; None keeps each tensor's."""
    max_shard_bytes: int = 5_000_000_000
    time_limit_s: float | None = None
    """Of `full`: the whole run's time, so that the model's training ends in time; None: when its tokens are through."""
    device: str = "cpu"
    seed: int = 0
    resume: bool = False
    dry_run: bool = False

    @property
    def up_scaled(self) -> bool:
        """As ModelSpec.up_scaled, of the model that is made."""
        return self.activation == "tswiglu" and self.training.ups < 1

    def __post_init__(self) -> None:
        for name, choices in (
            ("activation", ("drelu", "reglu", "tswiglu")),
            ("recover", ("none", "local", "full")),
            ("dtype", (None, "F32", "F16", "BF16")),
        ):
            if getattr(self, name) not in choices:
                raise TsconvertError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(map(str, choices))}")
        if self.activation == "tswiglu":
            if self.training.target_sparsity is None:
                raise TsconvertError(
                    "--activation tswiglu: say how many neurons are to be silent with --target-sparsity"
                )
            if self.training.silenced_by != "threshold":
                raise TsconvertError("--activation tswiglu: thresholds silence its neurons; leave --silenced-by out")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise TsconvertError(f"--time-limit {self.time_limit_s:g}: it must be more than 0")
        if self.shift is not None and not 0 < self.shift < 1:
            raise TsconvertError(f"--shift {self.shift:g}: it must lie between 0 and 1, as in --shift 0.995")

    @property
    def layer_stage(self) -> "RelufyConfig":
        """What is asked of the layers one by one: of `full` its first stage.

        Thresholds on SwiGLU alone leave a better start than training the layers does, and the whole model's training
        moves them from its first step on: all time and text are for that then.
        """
        if self.recover != "full":
            return self
        if self.activation == "tswiglu" and self.predictors is None:
            return replace(self, recover="none", tokens=min(self.tokens, _FIRST_TOKENS), shift=None)
        return replace(self, recover="local", shift=None)
