"""`tsconvert predictors --estimate`: what to expect at which rank, from few tokens and few layers."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..model.checkpoint import open_checkpoint
from ..model.layers import Layer
from ..model.sweep import Stream, sweep
from .config import PredictorConfig
from .cost import check_rank
from .profile.profile import refuse_dense
from .report import FFNReport
from .train import training_sequences
from .training.layer_candidates import MIN_TOKENS, layer_ffns, train_one

_TOKENS = 8192
_STEPS = 150
_LAYERS = 3
_RANKS = (32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What predictors are likely to do. A full run, with more tokens and steps, does a little better."""

    tokens: int
    trials: tuple[FFNReport, ...]
    """For some layers (of experts: the one that most tokens reach), for some ranks."""
    elapsed_s: float

    @property
    def best(self) -> dict[int, FFNReport]:
        """By layer, the rank with the fewest bytes."""
        found: dict[int, FFNReport] = {}
        for trial in self.trials:
            if trial.layer not in found or trial.bytes_predicted < found[trial.layer].bytes_predicted:
                found[trial.layer] = trial
        return found

    @property
    def pays(self) -> bool:
        """In most of the layers tried."""
        best = list(self.best.values())
        return sum(trial.pays for trial in best) * 2 > len(best)

    def to_json(self) -> dict[str, Any]:
        """Every field, and whether it pays."""
        return asdict(self) | {"pays": self.pays, "best_rank": {str(i): trial.rank for i, trial in self.best.items()}}

    def __str__(self) -> str:
        lines = ["layer  rank  density  predicted  recall  energy  bytes/exact"]
        for t in self.trials:
            ratio = t.bytes_predicted / t.bytes_exact if t.bytes_exact else 1.0
            best = "  fewest bytes" if t is self.best[t.layer] else ""
            lines.append(
                f"{t.layer:5}  {t.rank:4}  {t.density:7.3f}  {t.predicted_density:9.3f}  {t.recall:6.3f}"
                f"  {t.energy:6.4f}  {ratio:11.2f}{best}"
            )
        verdict = "predictors pay" if self.pays else "predictors do not pay: exact mode reads less"
        lines.append(f"{verdict}, by the bytes that a token reads ({self.tokens:,} tokens, {self.elapsed_s:.0f} s)")
        return "\n".join(lines)


def estimate_predictors(config: PredictorConfig) -> Estimate:
    """Try a few ranks on the first, middle and last layer; writes nothing.

    Args:
        config: as for `train_predictors`; tokens and steps are cut to what an estimate needs.

    Raises:
        TsconvertError: bad input, or a SwiGLU model.
    """
    start_s = time.monotonic()
    checkpoint = open_checkpoint(config.model)
    refuse_dense(checkpoint, config.model)
    check_rank(checkpoint.spec, config.rank)
    short = replace(config.training.on(config.device), steps=min(config.training.steps, _STEPS))
    tokens = min(config.tokens, _TOKENS * checkpoint.spec.ffns)
    config = replace(config, tokens=tokens, training=short)
    sequences = training_sequences(checkpoint, config)
    last = checkpoint.spec.layers - 1
    layers = {round(i * last / (_LAYERS - 1)) for i in range(_LAYERS)}
    ranks = [rank for rank in _RANKS if rank <= checkpoint.spec.width] or [checkpoint.spec.width]
    visitor = _Tries(config, sequences.train_tokens, layers, [config.rank] if config.rank else ranks)
    sweep(checkpoint, sequences.rows_NS, [visitor], config.device)
    return Estimate(tokens=sequences.tokens, trials=tuple(visitor.trials), elapsed_s=time.monotonic() - start_s)


class _Tries:
    """The sweep's visitor."""

    def __init__(self, config: PredictorConfig, train_tokens: int, layers: set[int], ranks: list[int]) -> None:
        self.train_tokens = train_tokens
        self.config, self.layers, self.ranks = config, layers, ranks
        self.trials: list[FFNReport] = []

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Try every rank on one FFN of ``layer``, if it is one of those asked for."""
        if layer.index not in self.layers:
            return ""
        ffn = max(layer_ffns(layer, stream, self.train_tokens), key=lambda each: each.train_tokens)
        if ffn.train_tokens < MIN_TOKENS or not ffn.calibration_tokens:
            return f"{ffn.train_tokens} tokens are too few"
        self.trials += [train_one(ffn, rank, self.config)[1] for rank in self.ranks]
        return f"energy {self.trials[-1].energy:.3f} at density {self.trials[-1].predicted_density:.3f}"
