"""The sweep's visitor that trains each layer's predictors: one for each FFN, or several ranks to choose from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...common.errors import TsconvertError
from ...common.progress import note
from ...model.checkpoint import Checkpoint
from ...model.layers import Layer
from ...model.spec import ModelSpec
from ...model.sweep import Stream
from ...text.sequences import Sequences
from ..calibration.ffn import calibrate, judge, left_to_exact
from ..config import PredictorConfig
from ..energy import FFN, ffns_of
from ..folder import load_predictors
from ..predictor import Predictor
from ..report import FFNReport
from .candidate_store import Candidate, CandidateStore
from .rank import highest_rank, ranks_to_try, try_ranks
from .trainer import PredictorTrainer

# Shape suffixes: N sequences, S tokens a sequence, T tokens, D model width, F neurons, R predictor rank.
MIN_TOKENS = 256
"""Training tokens without which an expert gets no predictor."""


class CandidateTrainer:
    """Makes the candidates of each layer that has none yet, and stores them."""

    def __init__(
        self, checkpoint: Checkpoint, sequences: Sequences, config: PredictorConfig, store: CandidateStore
    ) -> None:
        self.config, self.store, self.width = config, store, checkpoint.spec.width
        self.highest_rank = highest_rank(checkpoint.spec, config.budget)
        self.train_tokens = sequences.train_tokens
        self.start = None if config.start is None else _start(config.start, checkpoint.spec)

    def visit(self, layer: Layer, stream: Stream) -> str:
        """Train the predictors of ``layer``."""
        if layer.index in self.store:
            return "as it was before"
        candidates = [self._candidates(ffn) for ffn in layer_ffns(layer, stream, self.train_tokens)]
        self.store.save(layer.index, candidates)
        reports = [ffn[-1][1] for ffn in candidates if ffn[-1][1].used]
        if not reports:
            return "no predictor"
        energy, density = (
            sum(getattr(r, name) for r in reports) / len(reports) for name in ("energy", "predicted_density")
        )
        return f"rank {max(r.rank for r in reports)}, energy {energy:.3f} at density {density:.3f}"

    def _candidates(self, ffn: FFN) -> list[Candidate]:
        """One FFN's; one without a predictor where too few tokens reach it."""
        config = self.config
        if ffn.train_tokens < MIN_TOKENS or not ffn.calibration_tokens:
            where = f"layer {ffn.layer.index}" + (f", expert {ffn.expert}" if ffn.layer.experts else "")
            note(f"{where}: {ffn.train_tokens} tokens reached it, too few for a predictor")
            return [(None, left_to_exact(ffn, "too few tokens"))]
        if self.start is not None:
            start = self.start[ffn.layer.index][ffn.expert]
            if start is None:
                return [(None, left_to_exact(ffn, "as before"))]
            return [train_one(ffn, start.rank, config, start)]
        if config.rank is not None:
            return [train_one(ffn, config.rank, config)]
        ranks = ranks_to_try(self.width, self.highest_rank)
        return try_ranks(ranks, lambda rank: train_one(ffn, rank, config), config.max_density)


def layer_ffns(layer: Layer, stream: Stream, train_tokens: int) -> list[FFN]:
    """The layer's FFNs with their tokens; all share one copy of the layer's normed inputs.

    Args:
        train_tokens: the first so many of the stream's tokens train; the others calibrate.
    """
    x_TD = torch.empty(stream.rows_NS.numel(), stream.hidden_NSD.shape[2])
    start = 0
    for part_TD in stream.inputs(layer):
        x_TD[start : start + len(part_TD)] = part_TD
        start += len(part_TD)
    return ffns_of(layer, x_TD, train_tokens)


def train_one(
    ffn: FFN, rank: int, config: PredictorConfig, start: Predictor | None = None
) -> tuple[Predictor, FFNReport]:
    """One predictor of ``ffn``, with its threshold, and what it does on the calibration tokens."""
    generator = torch.Generator().manual_seed(_seed(config.seed, ffn.layer.index, ffn.expert, rank))
    trainer = PredictorTrainer(ffn, rank, config.target_energy, config.training, generator, start)
    trainer.train(generator)
    predictor = trainer.predictor()
    threshold = calibrate(ffn, predictor, config.target_energy)
    predictor = replace(predictor, threshold=threshold, fired_F=ffn.fired().cpu().numpy())
    return predictor, judge(ffn, predictor, config.bits)


def _start(folder: Path, spec: ModelSpec) -> Sequence[Sequence[Predictor | None]]:
    """The predictors in ``folder``, which must have the model's shape."""
    layers = load_predictors(folder).ffns
    first = next((predictor for row in layers for predictor in row if predictor is not None), None)
    shape = None if first is None else (len(layers), len(layers[0]), first.fc1_RD.shape[1], first.fc2_FR.shape[0])
    wanted = (spec.layers, spec.ffns, spec.width, spec.neurons)
    if shape != wanted:
        raise TsconvertError(
            f"{folder}: its predictors are for another shape (layers, FFNs a layer, width, neurons: {shape}), this"
            f" model has {wanted}; start from predictors of this model"
        )
    return layers


def _seed(*parts: int) -> int:
    """One seed from several numbers, the same on every machine."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed
