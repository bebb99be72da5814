"""What `tsconvert eval` found: for people, and as JSON whose keys docs/eval.md lists and other commands read."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...common.results import Result


@dataclass(frozen=True, kw_only=True)
class CorpusScore:
    """One --data's own figures."""

    name: str
    tokens: int
    """Tokens in its windows."""
    counted: int
    """Tokens whose probability counts."""
    perplexity: float
    perplexity_error: float
    density: float | None
    """Mean over layers; None for SwiGLU."""
    predicted_density: float | None
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class EvalReport(Result):
    """What `evaluate` found. Field names are the JSON keys."""

    model: str
    mode: str
    """`checkpoint`, or the mode in which the runner ran: `dense`, `exact` or `predicted`."""
    method: str
    """How text was cut: `llama.cpp` or `papers`."""
    context: int
    stride: int | None
    parse_special: bool
    """Special tokens that the text spells were taken for those tokens."""
    windows: int
    tokens: int
    """Tokens in all windows."""
    counted: int
    """Tokens whose probability counts."""
    perplexity: float
    perplexity_error: float
    """Standard error, as llama-perplexity's."""
    density: list[float] = field(default_factory=list)
    """Share of neurons that fire, per layer; empty for SwiGLU."""
    predicted_density: list[float] = field(default_factory=list)
    """Share of neurons that the predictors name, per layer; empty without."""
    recall: list[float] = field(default_factory=list)
    """Share of the firing neurons that were predicted, per layer; empty without."""
    mean_density: float | None = None
    mean_predicted_density: float | None = None
    mean_recall: float | None = None
    expert_density: list[list[float]] = field(default_factory=list)
    """Per layer and expert; empty for dense FFNs and for GGUF files."""
    expert_tokens: list[list[float]] = field(default_factory=list)
    """Share of a layer's routed tokens that each expert saw."""
    corpora: list[CorpusScore] = field(default_factory=list)
    against: str | None = None
    """The reference: a model, or the one whose logits were stored. What follows is None without."""
    against_perplexity: float | None = None
    perplexity_ratio: float | None = None
    """The model's over the reference's."""
    perplexity_ratio_error: float | None = None
    kl_mean: float | None = None
    """KL(reference || model) per token, nats."""
    kl_mean_error: float | None = None
    kl_median: float | None = None
    kl_99: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    """Share of the tokens with the same first choice, 0 to 1."""
    kept_logits: int | None = None
    """Where the reference was read from a file: the tokens kept of each prediction."""

    def __str__(self) -> str:
        cut = f"{self.windows} windows of {self.context}" + (f", stride {self.stride}" if self.stride else "")
        found = f"perplexity {self.perplexity:.4f} +/- {self.perplexity_error:.4f}"
        lines = [f"{self.model} ({self.mode}): {found} on {self.counted:,} tokens ({self.method}, {cut})"]
        if len(self.corpora) > 1:
            lines += [f"  {each.name}: {each.perplexity:.4f} on {each.counted:,} tokens" for each in self.corpora]
        if self.mean_density is not None:
            lines.append(f"density {self.mean_density:.1%} ({', '.join(f'{d:.0%}' for d in self.density)})")
            if len(self.corpora) > 1:
                lines.append("  " + ", ".join(f"{each.name} {each.density or 0:.1%}" for each in self.corpora))
        for number, (shares, tokens) in enumerate(zip(self.expert_density, self.expert_tokens, strict=True)):
            each = ", ".join(f"{share:.0%} of {part:.0%}" for share, part in zip(shares, tokens, strict=True))
            lines.append(f"  layer {number}, density of each expert and its share of the tokens: {each}")
        if self.mean_predicted_density is not None:
            lines.append(f"predicted density {self.mean_predicted_density:.1%}, recall {self.mean_recall or 0:.1%}")
        if self.against is not None:
            kept = f", its {self.kept_logits} likeliest tokens and the rest" if self.kept_logits else ""
            ratio = f"ratio {self.perplexity_ratio:.5f} +/- {self.perplexity_ratio_error:.5f}"
            divergence = f"mean {self.kl_mean:.6f} +/- {self.kl_mean_error:.6f}, median {self.kl_median:.6f}"
            lines += [
                f"against {self.against}{kept} (perplexity {self.against_perplexity:.4f}): {ratio}",
                f"KL divergence, nats a token: {divergence}, 99 % {self.kl_99:.6f}, maximum {self.kl_max:.6f}",
                f"the same first choice for {self.top1_agreement:.2%} of the tokens",
            ]
        return "\n".join(lines)


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / max(1, len(values))


def mean_or_none(values: Sequence[float]) -> float | None:
    """The mean; None of nothing."""
    return mean(values) if values else None
