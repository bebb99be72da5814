"""What training predictors came to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.cost import Cost
from ..common.results import Result
from ..text.sources import Source


@dataclass(frozen=True, kw_only=True)
class FFNReport(Result):
    """What one predictor does, on the calibration tokens. All shares lie between 0 and 1."""

    layer: int
    expert: int
    rank: int
    """0 where the FFN has no predictor."""
    threshold: float = 0.0
    tokens: int = 0
    """Trained on."""
    calibration_tokens: int = 0
    density: float = 0.0
    """True: share of neurons whose activation is not zero."""
    gate_density: float = 0.0
    predicted_density: float = 0.0
    recall: float = 0.0
    """Share of the firing neurons that were predicted."""
    precision: float = 0.0
    """Share of the predicted neurons that fire."""
    energy: float = 0.0
    """Share of the energy sum_j (h_j |down_j|)^2 that predicted neurons carry, weighted as energy.py says."""
    energy_at_zero: float = 0.0
    """The same at threshold 0, which is all that PowerInfer's form can have."""
    predicted_density_at_zero: float = 0.0
    bytes_predicted: float = 0.0
    """Bytes that a token reads in the FFN, by cost.py, with the predictor."""
    bytes_exact: float = 0.0
    used: bool = True
    """False: the FFN is left to exact mode."""
    reason: str = ""
    """Why it is."""

    @property
    def pays(self) -> bool:
        """A token reads fewer bytes with the predictor than without."""
        return self.bytes_predicted < self.bytes_exact


@dataclass(frozen=True, kw_only=True)
class PredictorReport(Result):
    """What `train_predictors` did; measured on the sequences kept from training, which also set the thresholds."""

    out: Path | None
    method: str = "low-rank"
    """How they were trained: alone, or with a layer or the whole model."""
    target_energy: float
    tokens: int
    model_parameters: int
    predictor_parameters: int = 0
    stored_as: str = "F16"
    """The type that they were trained to be stored in, which an export takes."""
    ffns: tuple[FFNReport, ...] = ()
    """Layer by layer, expert by expert."""
    perplexity_exact: float = 0.0
    perplexity_predicted: float = 0.0
    kl_divergence: float = 0.0
    """Mean over tokens of KL(exact | predicted), in nats."""
    same_top: float = 0.0
    """Share of the tokens for which both modes find the same next token most likely."""
    cost: Cost | None = None
    """What a dry run found; it has nothing else."""
    elapsed_s: float = 0.0

    @property
    def used(self) -> list[FFNReport]:
        """The FFNs that have a predictor."""
        return [ffn for ffn in self.ffns if ffn.used]

    @property
    def size_share(self) -> float:
        """Predictors' parameters over the model's."""
        return self.predictor_parameters / self.model_parameters

    def mean(self, name: str) -> float:
        """Mean of a field of FFNReport over the FFNs that have a predictor; 0 where none has."""
        return float(sum(getattr(ffn, name) for ffn in self.used)) / max(1, len(self.used))

    def to_json(self) -> dict[str, Any]:
        """Every field, means, and the FFNs."""
        means = ("rank", "density", "predicted_density", "recall", "precision", "energy", "energy_at_zero")
        return super().to_json() | {"size_share": self.size_share, "mean": {name: self.mean(name) for name in means}}

    def for_folder(self, data: Sequence[Source], seed: int) -> dict[str, Any]:
        """What the predictor folder keeps of the report: nothing that differs between equal runs."""
        found = self.to_json() | {"data": [source.path for source in data], "seed": seed}
        return {name: value for name, value in found.items() if name != "out"}

    def __str__(self) -> str:
        if self.cost is not None:
            return str(self.cost)
        lines = [
            "layer expert  rank  density  predicted  recall  energy  threshold  bytes/exact",
            *map(_row, self.ffns),
        ]
        where = f"{self.out}: " if self.out else ""
        lines.append(
            f"{where}predictors for {len(self.used)} of {len(self.ffns)} FFNs, {self.predictor_parameters:,}"
            f" parameters, {self.size_share:.1%} of the model's"
        )
        if self.used:
            ratio = self.mean("bytes_predicted") / max(1e-9, self.mean("bytes_exact"))
            lines.append(
                f"mean: density {self.mean('density'):.3f}, predicted {self.mean('predicted_density'):.3f}, recall"
                f" {self.mean('recall'):.3f}, energy {self.mean('energy'):.4f}, {ratio:.2f} of the bytes of exact mode"
            )
        lines.append(
            f"perplexity on sequences kept from training: exact {self.perplexity_exact:.2f}, predicted"
            f" {self.perplexity_predicted:.2f} ({self.perplexity_predicted / self.perplexity_exact - 1:+.1%})"
        )
        lines.append(
            f"KL of predicted from exact {self.kl_divergence:.4f} nats, same next token {self.same_top:.1%};"
            f" {self.tokens:,} tokens, {self.elapsed_s:.0f} s"
        )
        return "\n".join(lines)


def _row(ffn: FFNReport) -> str:
    head = f"{ffn.layer:5} {ffn.expert:6}"
    if not ffn.used:
        return f"{head}  left to exact mode: {ffn.reason} ({ffn.tokens} tokens)"
    ratio = ffn.bytes_predicted / ffn.bytes_exact if ffn.bytes_exact else 1.0
    return (
        f"{head}  {ffn.rank:4}  {ffn.density:7.3f}  {ffn.predicted_density:9.3f}  {ffn.recall:6.3f}  {ffn.energy:6.4f}"
        f"  {ffn.threshold:9.4f}  {ratio:11.2f}"
    )
