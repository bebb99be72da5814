"""`tsconvert predictors`: one small network per FFN or expert, trained in the sweep, foresees what fires."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..convert import distributed
from ..convert.checkpoint import Checkpoint, open_checkpoint
from ..convert.corpora import Source, calibration_rows
from ..convert.errors import TsconvertError
from ..convert.layers import Layer
from ..convert.progress import note
from ..convert.sequences import Sequences
from ..convert.sweep import Stream, sweep
from ..convert.writer import refuse_existing
from .calibrate import FFNReport, calibrate, judge
from .cost import Bits
from .effect import feed_forward_predicted
from .folder import Predictor, PredictorSet, save_predictors
from .labels import FFN, ffns_of
from .linear import gate_svd
from .profile import refuse_dense
from .rank import Budget, Trial, candidates, search
from .report import PredictorReport
from .stored import BITS, as_stored
from .training import Training, train_low_rank

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons, R predictor rank.
METHODS = ("low-rank", "svd", "sign")
MIN_TOKENS = 256
"""Training tokens without which an expert gets no predictor."""
_CALIBRATION_SHARE = 8  # one sequence in so many is kept from training and calibrates


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """What `train_predictors` is asked to do."""

    model: str
    """A sparse checkpoint: dReLU or ReGLU."""
    out: Path | None = None
    """The predictor folder; None writes none."""
    data: tuple[Source, ...] = ()
    """Text to train on; empty takes the embedded text."""
    tokens: int = 65_536
    context: int = 512
    """Tokens a sequence."""
    rank: int | None = None
    """R; None searches for the width that reads the fewest bytes, FFN by FFN."""
    target_energy: float = 0.98
    """Share of the activation energy sum_j (h_j |down_j|)^2 (weighted: `Labels.energy_TF`) to be predicted, 0 to 1."""
    max_density: float | None = None
    """Share of the neurons that may be predicted, 0 to 1; an FFN that needs more is named."""
    budget: float | None = None
    """Share of the model's parameters that predictors may have, 0 to 1; None is no limit."""
    method: str = "low-rank"
    """`low-rank` (trained) or `svd` (truncated SVD of the gate)."""
    everywhere: bool | None = None
    """A predictor for every FFN; False leaves those that do not pay to exact mode. None: True for a fixed rank."""
    training: Training = field(default_factory=Training)
    model_bits: float = 16.0
    """A weight's size as the model is going to be stored, for the cost model; the predictors' is their training's."""
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise TsconvertError(f"method is {self.method!r}: it must be one of {', '.join(METHODS)}")
        if self.method == "sign":
            raise TsconvertError(
                "--method sign: packed sign bits (SparseInfer) are no fc1 and fc2, so a predictor folder cannot hold"
                " them; choose low-rank or svd"
            )
        if self.rank is not None and self.rank < 2:
            raise TsconvertError(f"--rank {self.rank}: it must be at least 2, or auto")
        for name in ("target_energy", "max_density", "budget"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise TsconvertError(f"--{name.replace('_', '-')} {value:g}: it must lie between 0 and 1")

    @property
    def bits(self) -> Bits:
        """For the cost model."""
        return Bits(model=self.model_bits, predictor=BITS[self.training.stored_as])

    @property
    def needs_everywhere(self) -> bool:
        """No FFN may be left to exact mode because its predictor does not pay."""
        return self.rank is not None if self.everywhere is None else self.everywhere


def train_predictors(config: PredictorConfig) -> PredictorReport:
    """Train the predictors of ``config.model`` and write them to ``config.out``.

    Started by torchrun, the processes share the text, and the first one writes.

    Raises:
        TsconvertError: bad input, an output that exists, a SwiGLU model, or a rank over the budget.

    Example:
        >>> print(train_predictors(PredictorConfig(model="sparse", out=Path("predictors"), rank=32)))
    """
    start_s = time.monotonic()
    with distributed.processes(config.device) as device:
        config = replace(config, device=device, training=config.training.on(device))
        if config.out is not None:
            refuse_existing(config.out)
        checkpoint = open_checkpoint(config.model)
        refuse_dense(checkpoint, config.model)
        budget = Budget(checkpoint.spec, config.budget)
        if config.rank is not None:
            budget.check(config.rank)
        sequences = training_sequences(checkpoint, config)
        trainer = _Trainer(checkpoint, sequences, config, budget)
        stream = sweep(checkpoint, sequences.rows_NS, [trainer], config.device)
        report = PredictorReport(
            out=config.out,
            method=config.method,
            target_energy=config.target_energy,
            tokens=sequences.tokens,
            model_parameters=checkpoint.spec.parameters,
            predictor_parameters=trainer.parameters,
            ffns=tuple(trainer.reports),
            perplexity_exact=math.exp(stream.cross_entropy(sequences.held)),
            perplexity_predicted=math.exp(trainer.predicted.cross_entropy(slice(None))),
            elapsed_s=time.monotonic() - start_s,
        )
        if config.out is not None and not distributed.rank():
            _save(checkpoint, trainer.ffns, report, config, config.out)
    return report


def _save(
    checkpoint: Checkpoint, ffns: list[list[Predictor | None]], report: PredictorReport, config: PredictorConfig,
    out: Path,
) -> None:  # fmt: skip
    found = report.to_json() | {"data": [source.path for source in config.data], "seed": config.seed}
    for varying in ("elapsed_s", "out"):  # the same run gives the same bytes
        found.pop(varying)
    save_predictors(PredictorSet(model_fingerprint=checkpoint.fingerprint, ffns=ffns, report=found), out)


def training_sequences(checkpoint: Checkpoint, config: PredictorConfig) -> Sequences:
    """This process's sequences; those held back calibrate."""
    rows = calibration_rows(checkpoint, config.data, tokens=config.tokens, context=config.context, seed=config.seed)
    return Sequences(rows, _CALIBRATION_SHARE)


def layer_ffns(layer: Layer, stream: Stream, train_tokens: int) -> list[FFN]:
    """The layer's FFNs with their tokens; all share one copy of the layer's normed inputs.

    Args:
        train_tokens: of the stream, the first ones; the others calibrate.
    """
    x_TD = torch.empty(stream.rows_NS.numel(), stream.hidden_NSD.shape[2])
    start = 0
    for part_TD in stream.inputs(layer):
        x_TD[start : start + len(part_TD)] = part_TD
        start += len(part_TD)
    return ffns_of(layer, x_TD, train_tokens)


def train_one(ffn: FFN, rank: int, config: PredictorConfig) -> Trial:
    """One predictor of ``ffn``, with its threshold and what it does on the calibration tokens."""
    generator = torch.Generator().manual_seed(hash_seed(config.seed, ffn.layer.index, ffn.expert, rank))
    if config.method == "svd":
        fc1_RD, fc2_FR = (as_stored(w, config.training.stored_as) for w in gate_svd(ffn, rank, generator))
    else:
        fc1_RD, fc2_FR = train_low_rank(ffn, rank, config.target_energy, config.training, generator)
    predictor = Predictor(
        fc1_RD=fc1_RD.cpu().numpy(),
        fc2_FR=fc2_FR.cpu().numpy(),
        threshold=calibrate(ffn, fc1_RD, fc2_FR, config.target_energy),
        fired_F=ffn.fired().cpu().numpy(),
    )
    return predictor, judge(ffn, predictor, config.bits)


def hash_seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed


class _Trainer:
    """The sweep's visitor: trains a layer's predictors, then lets the calibration sequences feel their effect."""

    def __init__(self, checkpoint: Checkpoint, sequences: Sequences, config: PredictorConfig, budget: Budget) -> None:
        self.config, self.budget, self.width = config, budget, checkpoint.spec.width
        self.train_tokens = sequences.train_tokens
        self.ffns: list[list[Predictor | None]] = []
        self.reports: list[FFNReport] = []
        self.predicted = Stream(checkpoint, sequences.rows_NS[sequences.held], config.device)
        """The calibration sequences in predicted mode."""

    @property
    def parameters(self) -> int:
        """Weights of all predictors so far."""
        return sum(p.fc1_RD.size + p.fc2_FR.size for experts in self.ffns for p in experts if p is not None)

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Train the predictors of ``layer``."""
        trials = [self._ffn(ffn) for ffn in layer_ffns(layer, stream, self.train_tokens)]
        self.ffns.append([predictor for predictor, _ in trials])
        self.reports += [report for _, report in trials]
        self.predicted.attend(layer)
        feed_forward_predicted(self.predicted, layer, self.ffns[-1])
        reports = [report for predictor, report in trials if predictor is not None]
        if not reports:
            return "left to exact mode"
        energy, density = (
            sum(getattr(r, name) for r in reports) / len(reports) for name in ("energy", "predicted_density")
        )
        return f"rank {max(r.rank for r in reports)}, energy {energy:.3f} at density {density:.3f}"

    def _ffn(self, ffn: FFN) -> tuple[Predictor | None, FFNReport]:
        """The predictor of one FFN, or None with the reason in the report."""
        none = FFNReport(
            layer=ffn.layer.index, expert=ffn.expert, rank=0, used=False,
            tokens=ffn.train_tokens, calibration_tokens=ffn.calibration_tokens,
        )  # fmt: skip
        where = f"layer {ffn.layer.index}" + (f", expert {ffn.expert}" if ffn.layer.experts else "")
        if ffn.train_tokens < MIN_TOKENS or not ffn.calibration_tokens:
            note(f"{where}: {ffn.train_tokens} tokens reached it, too few for a predictor; it is left to exact mode")
            self.budget.spend(0)
            return None, replace(none, reason="too few tokens")
        if self.config.rank is None:
            ranks = candidates(self.width, self.budget.cap())
            trial = search(ranks, lambda rank: train_one(ffn, rank, self.config), self.config.max_density)
        else:
            trial = train_one(ffn, self.config.rank, self.config)
        if trial is None:
            note(f"{where}: the --budget leaves less than rank 32; it is left to exact mode")
            self.budget.spend(0)
            return None, replace(none, reason="over the budget")
        predictor, report = trial
        limit = self.config.max_density
        if limit is not None and report.predicted_density > limit:
            needs = f"{report.predicted_density:.3f}"
            note(f"{where}: the energy asked for takes density {needs}, over --max-density {limit:g}")
        if not self.config.needs_everywhere and not report.pays:
            note(f"{where}: a predictor would not pay; it is left to exact mode")
            self.budget.spend(0)
            return None, replace(report, used=False, reason="does not pay")
        self.budget.spend(report.rank)
        return predictor, report
