"""What `relufy --recover full` is asked to do, and what it says in the end."""

from dataclasses import asdict, dataclass
from typing import Any

from ...common.errors import TsconvertError


@dataclass(frozen=True, kw_only=True)
class FullRecovery:
    """How the whole model is trained on."""

    tokens: int = 2_000_000
    """Trained on, all steps together; text that is shorter is repeated."""
    batch_tokens: int = 2048
    """A step, over all processes."""
    micro_tokens: int = 2048
    """That go through the model together in one process."""
    learning_rate: float | None = None
    """AdamW's, at its peak, after which a cosine takes it to zero. None: by the model's width."""
    cross_entropy: float = 1.0
    """Weight of the cross-entropy with the text."""
    divergence: float = 1.0
    """Weight of KL(dense teacher || student)."""
    hidden: float = 0.0
    """Weight of the relative squared distance of each layer's hidden states from the teacher's."""
    top_logits: int | None = None
    """The teacher's so many largest logits are computed first and kept on disk; None: all, while training."""
    penalty: str = "steered"
    """`steered` to the target sparsity, without one there is none; or `sine`, ProSparse's stages."""
    penalty_peak: float = 1.0
    """Of `sine`: the last stage's weight."""
    target_sparsity: float | None = None
    """Share of neurons to be silent, 0 to 1."""
    train_embeddings: bool = False
    evaluations: int = 10
    """So many times the held-out text is looked at, evenly over the training, and a checkpoint is kept."""
    patience: int = 0
    """Stop after so many evaluations in a row without a better model; 0: never."""
    checkpointing: bool = False
    """Activations are computed again instead of kept (gradient checkpointing)."""
    stream: bool = False
    """Text is read, tokenized and packed while it is trained on, for corpora that memory does not hold."""
    chat: str | None = None
    """Conversations (.jsonl) to train on in place of text, with a loss on answers only."""
    baseline: bool = False
    """The dense model is trained on the same tokens as well, to be compared with."""
    report_to: tuple[str, ...] = ()
    """transformers' logging backends: tensorboard, wandb, ..."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "micro_tokens", "evaluations"):
            if getattr(self, name) < 1:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("cross_entropy", "divergence", "hidden"):
            if not getattr(self, name) >= 0:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not self.cross_entropy + self.divergence + self.hidden:
            raise TsconvertError(
                "cross_entropy, divergence and hidden are all 0: there is nothing to learn from; give one a weight"
            )
        if self.penalty not in ("steered", "sine"):
            raise TsconvertError(f"penalty is {self.penalty!r}; choose one of steered, sine")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise TsconvertError(f"learning_rate is {self.learning_rate}: it must be above 0")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / self.batch_tokens))

    def peak(self, width: int) -> float:
        """The learning rate for a model of ``width``."""
        return 6e-4 * (576 / width) ** 0.5 if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One look at the held-out text."""

    step: int
    perplexity: float
    density: float
    """Share of neurons that fire, mean over layers."""
    predicted_perplexity: float | None = None
    """With the mask of predictors in the loop."""


@dataclass(frozen=True, kw_only=True)
class FullFound:
    """What the training of the whole model found."""

    steps: int
    tokens: int
    best_step: int
    perplexity: float
    dense_perplexity: float = 0.0
    baseline: float | None = None
    """Perplexity of the dense model after training on the same tokens."""
    density: tuple[float, ...]
    """Of each layer."""
    evaluations: tuple[Evaluation, ...]
    losses: tuple[tuple[int, float], ...]
    """Step and training loss, every few steps."""
    elapsed_s: float

    def to_json(self) -> dict[str, Any]:
        """Every field."""
        return asdict(self)
