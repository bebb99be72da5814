"""What `relufy` did."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.cost import Cost
from ..common.results import Result
from ..model.sparse_checkpoint import Thresholds
from ..predictors.report import PredictorReport


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What one layer's recovery did, on tokens that it was not trained on."""

    error_before: float
    """Mean over tokens of |student - teacher|^2 / |teacher|^2 at the layer's output."""
    error_after: float
    density: float
    """Share of neurons that fire."""
    expert_tokens: list[int]
    """Training tokens that the router gave each FFN."""
    threshold: float = 0.0
    """Up to it relu gives 0; see `ModelSpec.thresholds`."""
    up_threshold: float = 0.0
    curve: list[float] = field(default_factory=list)
    """The training loss, in ``error_before``'s measure: the mean of each of at most 24 equal stretches of the steps."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation on the held-out text while the whole model is trained."""

    step: int
    perplexity: float
    density: float
    """Share of neurons that fire, mean over layers."""
    predicted_perplexity: float | None = None
    """Perplexity under the predictors' mask, where predictors are trained as well."""


@dataclass(frozen=True, kw_only=True)
class FullResult:
    """What the training of the whole model came to."""

    steps: int
    tokens: int
    best_step: int
    perplexity: float
    dense_perplexity: float = 0.0
    baseline: float | None = None
    """Perplexity of the dense model after training on the same tokens."""
    density: tuple[float, ...]
    """Share of neurons that fire, by layer."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    tokens_per_s: float = 0.0
    """Tokens trained on a second, over all processes, evaluations left out."""
    evaluations: tuple[Evaluation, ...]
    losses: tuple[tuple[int, float], ...]
    """Step and training loss, every few steps."""
    elapsed_s: float


@dataclass(frozen=True, kw_only=True)
class ThresholdShift:
    """What setting thresholds did, on the sequences that set them."""

    thresholds: tuple[float, ...]
    """By layer."""
    density_before: float
    density: float
    perplexity_before: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class RelufyReport(Result):
    """What `relufy` did."""

    out: Path
    source_fingerprint: str
    parameters: int
    size_bytes: int
    tokens: int = 0
    energy_kept: tuple[float, float] | None = None
    """Share of the SwiGLU energy on u > 0 before and after sign alignment, mean over layers."""
    layers: tuple[LayerResult, ...] = ()
    dense_perplexity: float | None = None
    """On the sequences that were kept from training."""
    perplexity: float | None = None
    """With ``predictors``, after local recovery: that of predicted mode."""
    full: FullResult | None = None
    """What training the whole model came to; the perplexities are then those after it."""
    shift: ThresholdShift | None = None
    """What the thresholds set as the last step do."""
    elapsed_s: float = 0.0
    cost: Cost | None = None
    """What a dry run says that the run would take."""
    predictors: PredictorReport | None = None
    """What the predictors do that were trained together with the model."""

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; `predictors` only where there are some."""
        found = super().to_json()
        found.pop("predictors")
        return found | ({"predictors": self.predictors.to_json()} if self.predictors else {})

    def __str__(self) -> str:
        what = f"{self.out}: {self.parameters / 1e6:.1f}M parameters, {self.size_bytes / 1e6:,.1f} MB"
        if self.cost:
            return f"would write {what}\n{self.cost}"
        lines = [f"{what}, {self.elapsed_s:.0f} s"]
        if self.energy_kept:
            before, after = self.energy_kept
            lines.append(f"sign alignment: dReLU keeps {after:.0%} of the SwiGLU energy instead of {before:.0%}")
        if self.perplexity is not None and self.dense_perplexity is not None:
            ratio = self.perplexity / self.dense_perplexity
            lines.append(
                f"perplexity on sequences kept from training: {self.perplexity:.2f}, dense {self.dense_perplexity:.2f}"
                f" ({ratio:.2f} times)"
            )
        unseen = [(i, e) for i, layer in enumerate(self.layers) for e, n in enumerate(layer.expert_tokens) if not n]
        if unseen:
            named = ", ".join(f"{expert} of layer {layer}" for layer, expert in unseen)
            lines.append(f"experts that no token reached: {named}; --min-expert-tokens trains them")
        if self.shift:
            was, now = self.shift.density_before, self.shift.density
            ratio = self.shift.perplexity / self.shift.perplexity_before
            lines.append(f"threshold shift: density {was:.1%} to {now:.1%}, perplexity {ratio:.3f} times")
        densities = [layer.density for layer in self.layers]
        if self.full:
            full, densities = self.full, list(self.full.density)
            lines.append(f"the whole model: {full.steps} steps, {full.tokens:,} tokens; best at step {full.best_step}")
        if densities:
            density = sum(densities) / len(densities)
            lines.append(f"density: {density:.1%} of the neurons fire, on average over layers")
        return "\n".join([*lines, str(self.predictors)] if self.predictors else lines)
