"""What training predictors came to."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..convert.cost import Cost
from .calibration import FFNReport


@dataclass(frozen=True, kw_only=True)
class PredictorReport:
    """What `train_predictors` did; measured on the sequences kept from training, which also set the thresholds."""

    out: Path | None
    method: str
    target_energy: float
    tokens: int
    model_parameters: int
    predictor_parameters: int = 0
    ffns: tuple[FFNReport, ...] = ()
    """Layer by layer, expert by expert."""
    perplexity_exact: float = 0.0
    perplexity_predicted: float = 0.0
    kl_divergence: float = 0.0
    """Mean over tokens of KL(exact | predicted), in nats."""
    same_top: float = 0.0
    """Share of the tokens for which both modes find the same next token most likely."""
    cost: Cost | None = None
    """Of a dry run, which has nothing else."""
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
        found = asdict(self) | {"out": None if self.out is None else str(self.out)}
        return found | {"size_share": self.size_share, "mean": {name: self.mean(name) for name in means}}

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
