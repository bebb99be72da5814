"""What `relufy --recover full` is asked to do."""

from dataclasses import dataclass

from ...common.errors import TsconvertError


@dataclass(frozen=True, kw_only=True)
class FullRecovery:
    """How the whole model is trained."""

    tokens: int = 2_000_000
    """Tokens to train on, all steps together; text that is shorter is repeated."""
    batch_tokens: int = 1024
    """Tokens a step, over all processes."""
    micro_tokens: int = 1024
    """Tokens that go through the model together in one process."""
    learning_rate: float | None = None
    """AdamW's peak rate; a cosine takes it to zero. None: by the size of the weights (convert/learning_rate.py)."""
    cross_entropy: float = 0.0
    """Weight of the cross-entropy with the text."""
    divergence: float = 1.0
    """Weight of KL(dense teacher || student)."""
    likeliest: int = 8192
    """Compare with the teacher on so many tokens of the vocabulary, which it finds likeliest in the batch; 0: on all.
    With kept logits or trained embeddings, which need all logits, it is on all."""
    hidden: float = 0.0
    """Weight of the relative squared distance of each layer's hidden states from the teacher's."""
    top_logits: int | None = None
    """Compute so many of the teacher's largest logits first and keep them on disk; None: all, while training."""
    target_sparsity: float | None = None
    """Share of neurons to be silent, 0 to 1. None: local recovery's."""
    attention_share: float | None = None
    """Of what each token attends to, only the largest numbers reach the output matrix, this share of them: what a GGUF
    file's predicted mode reads that is exported with the same share. None: all of them."""
    train_embeddings: bool = False
    evaluations: int = 10
    """How often the held-out text is evaluated and a checkpoint kept, evenly over the training."""
    patience: int = 0
    """Stop after so many evaluations in a row without a better model; 0: never."""
    checkpointing: bool = False
    """Compute activations again instead of keeping them (gradient checkpointing)."""
    stream: bool = False
    """Read, tokenize and pack the text while training, for corpora that memory does not hold."""
    chat: str | None = None
    """Conversations (.jsonl) to train on in place of text, with a loss on answers only."""
    baseline: bool = False
    """Train the dense model on the same tokens as well, to compare with."""
    report_to: tuple[str, ...] = ()
    """transformers' logging backends: tensorboard, wandb, ..."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_tokens", "micro_tokens", "evaluations"):
            if getattr(self, name) < 1:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("cross_entropy", "divergence", "hidden", "likeliest"):
            if not getattr(self, name) >= 0:
                raise TsconvertError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not self.cross_entropy + self.divergence + self.hidden:
            raise TsconvertError(
                "cross_entropy, divergence and hidden are all 0: there is nothing to learn from; give one a weight"
            )
        if self.attention_share is not None and not 0 < self.attention_share <= 1:
            raise TsconvertError(f"attention_share is {self.attention_share:g}: it must be above 0 and at most 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise TsconvertError(f"learning_rate is {self.learning_rate}: it must be above 0")

    @property
    def unused(self) -> tuple[str, ...]:
        """Settings that say nothing. What a run writes leaves them out, as it was before there were any such."""
        return ("attention_share",) if self.attention_share is None else ()

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / self.batch_tokens))
