"""Predictors trained with each layer of local recovery: layer and predictors meet each other half way.

For its first steps a layer is trained as ever. Then its predictors are trained on it, and for the rest of the steps
only the neurons that they name make the layer's output, while they go on learning: the layer makes good what the mask
leaves out, and the predictors follow the layer (TurboSparse trained both together, arXiv 2406.05955). Their threshold
is 0 throughout, so that PowerInfer can run them.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import atomic_folder
from ...model.checkpoint import Checkpoint
from ...model.layers import Layer
from ...model.spec import ModelSpec
from ...model.sweep import Stream
from ...predictors.calibration.ffn import judge
from ...predictors.calibration.predicted_mode import compare, feed_forward_predicted
from ...predictors.cost import default_rank
from ...predictors.energy import FFN, ffns_of
from ...predictors.folder import load_predictors, write_predictors
from ...predictors.report import PredictorReport
from ...predictors.training.candidate_store import CandidateStore
from ...predictors.training.trainer import LATE_RATE, PredictorTrainer
from ..config import RelufyConfig
from ..config.masked import JointConfig
from ..layer_data import LayerData

if TYPE_CHECKING:
    from ...predictors.predictor import Predictor

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.


class JointPredictors:
    """The predictors of a model under local recovery.

    The sweep calls `start` once; for each layer `begin`, then `mask` and `learn` in each step, `end` (or `restore`) and
    `feed_forward`; then `write` once.
    """

    def __init__(self, spec: ModelSpec, joint: JointConfig, config: RelufyConfig) -> None:
        self.spec, self.joint, self.config = spec, joint, config
        self.masked_steps = joint.masked_steps
        self.training = replace(joint.training, autocast=config.training.autocast).on(config.device)
        self.rank = joint.rank or default_rank(spec)
        self._layer: list[Predictor | None] = []
        self._trainers: list[PredictorTrainer] = []

    def start(self, stream: Stream, held: slice) -> None:
        """Take the student's stream before its first layer; its sequences ``held`` run through exact mode beside it."""
        self._predicted, self._held = stream, held
        self._exact = Stream(
            stream.checkpoint, stream.rows_NS[held], stream.device,
            activation=stream.stack.activation, autocast=stream.autocast,
        )  # fmt: skip

    def begin(self, layer: Layer, data: LayerData, seed: int) -> None:
        """Train the predictors on the layer, which has been trained without a mask so far."""
        generator = torch.Generator().manual_seed(seed)
        self._trainers = [
            PredictorTrainer(ffn, self.rank, self.joint.target_energy, self.training, generator)
            for ffn in _ffns(layer, data)
        ]
        for trainer in self._trainers:
            if trainer.ffn.train_tokens:
                trainer.train(generator)

    @torch.no_grad()
    def mask(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """The neurons [T, F] with a logit of at least 0 for normed inputs; the others count as silent."""
        return (self._trainers[expert].logits(x_TD) >= 0).to(x_TD.dtype)

    def learn(self, expert: int, x_TD: torch.Tensor) -> None:
        """Take one step on ``x_TD``; the labels are the layer's as it is now."""
        tokens = int(processes.sums(len(x_TD))[0])
        if tokens:
            self._trainers[expert].ffn.refresh()
            self._trainers[expert].step(x_TD, tokens, LATE_RATE)

    def end(self, layer: Layer, data: LayerData, folder: Path) -> None:
        """Judge the predictors of the finished layer on tokens kept from training, and store them in ``folder``."""
        candidates = []
        for ffn, trainer in zip(_ffns(layer, data), self._trainers, strict=True):
            trainer.check()
            predictor = replace(trainer.predictor(), fired_F=ffn.fired().cpu().numpy())
            candidates.append([(predictor, judge(ffn, predictor, self.joint.bits))])
        CandidateStore(folder).save(layer.index, candidates)
        self._layer = [predictor for ((predictor, _),) in candidates]
        self._trainers = []

    def restore(self, layer: int, folder: Path) -> None:
        """Read back what `end` stored of a layer that an earlier run finished."""
        self._layer = CandidateStore(folder).load(layer, self._only)

    def feed_forward(self, stream: Stream, layer: Layer) -> None:
        """Push the student through the layer's FFN half with the mask, and its exact twin without."""
        self._exact.attend(layer)
        self._exact.feed_forward(layer)
        feed_forward_predicted(stream, layer, self._layer)

    def write(self, folder: Path) -> PredictorReport:
        """Write the predictor folder, bound to the finished checkpoint in ``folder``; returns what it does."""
        store, layers = CandidateStore(folder), range(self.spec.layers)
        ffns = tuple(report for layer in layers for (report,) in store.reports(layer))
        report = PredictorReport(
            out=self.joint.out, method="low-rank, trained along", target_energy=self.joint.target_energy,
            tokens=self.config.tokens, model_parameters=self.spec.parameters, ffns=ffns,
            stored_as=self.training.stored_as,
            predictor_parameters=sum(ffn.rank for ffn in ffns) * (self.spec.width + self.spec.neurons),
            **vars(compare(self._exact, slice(None), self._predicted, self._held)),
        )  # fmt: skip
        if not processes.rank():
            made_for = Checkpoint(folder).fingerprint
            if not self._written_before(made_for):
                about = report.for_folder(self.config.data, self.config.seed)
                with atomic_folder(self.joint.out) as partial:
                    rows = (store.read(layer, self._only) for layer in layers)
                    write_predictors(rows, made_for, about, partial)
        return report

    @property
    def _only(self) -> list[int | None]:
        """Each FFN has one candidate."""
        return [0] * self.spec.ffns

    def _written_before(self, fingerprint: str) -> bool:
        """Whether this resumes a run that was killed between writing these predictors and naming the model."""
        if not self.joint.out.exists():
            return False
        if load_predictors(self.joint.out).model_fingerprint != fingerprint:
            raise TsconvertError(
                f"{self.joint.out}: holds predictors of another model; choose another --predictors and --resume"
            )
        return True


@torch.no_grad()
def _ffns(layer: Layer, data: LayerData) -> list[FFN]:
    """The layer's FFNs with their tokens as the layer stands now."""
    x_TD = torch.cat([part_TD.cpu() for part_TD in data.ffn_inputs(layer, slice(0, len(data.x_TD)))])
    return ffns_of(layer, x_TD, data.train_tokens)
