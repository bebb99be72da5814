"""Predictors in the loop of local recovery: model and predictor meet each other half way.

For the first steps a layer is trained as ever. Then its predictors are trained on it, and for the rest of the steps
only the neurons that they name make the layer's output, while they go on learning: the layer makes good what the mask
leaves out, and the predictors follow the layer (TurboSparse trained both together, arXiv 2406.05955). Their threshold
is 0 throughout, so that PowerInfer can run them.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ...common import processes
from ...common.errors import TsconvertError
from ...common.files import atomic_folder, refuse_existing
from ...model.checkpoint import Checkpoint, open_checkpoint
from ...model.layers import Layer
from ...model.spec import ModelSpec
from ...model.sweep import Stream
from ...predictors.calibration import judge
from ...predictors.energy import FFN, ffns_of
from ...predictors.folder import load_predictors, write_predictors
from ...predictors.partial_results import Kept
from ...predictors.predicted_mode import compare, feed_forward_predicted
from ...predictors.predictor import Predictor
from ...predictors.rank import default_rank
from ...predictors.report import PredictorReport
from ...predictors.scores import logits
from ...predictors.training import LATE_RATE, LowRank
from ..config import RelufyConfig
from ..local.layer_data import LayerData
from ..relufy import relufy
from ..report import RelufyReport
from .config import JointConfig

# Shape suffixes: T tokens, D model width, F neurons, R predictor rank.


def relufy_with_predictors(config: RelufyConfig, joint: JointConfig) -> RelufyReport:
    """Recover a model layer by layer and train its predictors with it."""
    if not config.resume:
        refuse_existing(joint.out)
    if config.recover != "local":
        raise TsconvertError(
            f"--predictors with --recover {config.recover}: they are trained along with local or full recovery; choose"
            " one of these, or train them afterwards with `tsconvert predictors`"
        )
    spec = open_checkpoint(config.model).spec
    along = JointPredictors(spec, replace(joint, rank=joint.rank or default_rank(spec)), config)
    report = relufy(replace(config, predictors=None), along)
    return replace(report, predictors=along.report)


class JointPredictors:
    """`convert.along.Along` for low-rank predictors."""

    def __init__(self, spec: ModelSpec, joint: JointConfig, config: RelufyConfig) -> None:
        self.spec, self.joint, self.config = spec, joint, config
        self.share = joint.masked_steps
        self.training = joint.training
        self.report: PredictorReport | None = None
        self._layer: list[Predictor | None] = []
        self._learning: list[LowRank] = []
        self._exact: Stream | None = None
        self._predicted: Stream | None = None
        self._held = slice(None)

    def start(self, stream: Stream, held: slice) -> None:
        """The student's stream; its held sequences run through exact mode beside it."""
        self.training = self.training.on(str(stream.device))
        self._predicted, self._held = stream, held
        self._exact = Stream(
            stream.checkpoint, stream.rows_NS[held], stream.device,
            activation=stream.stack.activation, autocast=stream.autocast,
        )  # fmt: skip

    def begin(self, layer: Layer, data: LayerData, seed: int) -> None:
        """Train the predictors on the layer as it stands."""
        generator = torch.Generator().manual_seed(seed)
        rank = self.joint.rank or default_rank(self.spec)
        self._learning = [
            LowRank(ffn, rank, self.joint.target_energy, self.training, generator) for ffn in _ffns(layer, data)
        ]
        for predictor in self._learning:
            if predictor.ffn.train_tokens:
                predictor.train(generator)

    @torch.no_grad()
    def mask(self, expert: int, x_TD: torch.Tensor) -> torch.Tensor:
        """The neurons with a logit of at least 0."""
        predictor = self._learning[expert]
        return (logits(x_TD, predictor.fc1_RD, predictor.fc2_FR) >= 0).to(x_TD.dtype)

    def learn(self, expert: int, x_TD: torch.Tensor) -> None:
        """One step on ``x_TD``; the labels are the layer's as it is now."""
        tokens = int(processes.sums(len(x_TD))[0])
        if tokens:
            self._learning[expert].ffn.refresh()
            self._learning[expert].step(x_TD, tokens, LATE_RATE)

    def end(self, layer: Layer, data: LayerData, folder: Path) -> None:
        """Judge the predictors on the tokens kept from training, and keep them in the partial folder."""
        trials = []
        for ffn, learnt in zip(_ffns(layer, data), self._learning, strict=True):
            learnt.check()
            predictor = Predictor(
                fc1_RD=learnt.fc1_RD.cpu().numpy(), fc2_FR=learnt.fc2_FR.cpu().numpy(),
                fired_F=ffn.fired().cpu().numpy(),
            )  # fmt: skip
            trials.append([(predictor, judge(ffn, predictor, self.joint.bits))])
        Kept(folder).save(layer.index, trials)
        self._layer = [predictor for ((predictor, _),) in trials]
        self._learning = []

    def feed_forward(self, stream: Stream, layer: Layer) -> None:
        """Push the student through with the mask, and its exact twin without."""
        assert self._exact is not None
        self._exact.attend(layer)
        self._exact.feed_forward(layer)
        feed_forward_predicted(stream, layer, self._layer)

    def restore(self, layer: int, folder: Path) -> None:
        """Read back what `end` kept."""
        self._layer = Kept(folder).load(layer, self._first)

    def finish(self, folder: Path) -> None:
        """Write the predictor folder, bound to the finished checkpoint in ``folder``."""
        assert self._exact is not None
        assert self._predicted is not None
        kept, layers = Kept(folder), range(self.spec.layers)
        ffns = tuple(report for layer in layers for (report,) in kept.reports(layer))
        self.report = PredictorReport(
            out=self.joint.out, method="low-rank, trained along", target_energy=self.joint.target_energy,
            tokens=self.config.tokens, model_parameters=self.spec.parameters, ffns=ffns,
            predictor_parameters=sum(ffn.rank for ffn in ffns) * (self.spec.width + self.spec.neurons),
            **vars(compare(self._exact, slice(None), self._predicted, self._held)),
        )  # fmt: skip
        if processes.rank():
            return
        found = self.report.to_json() | {"data": [s.path for s in self.config.data], "seed": self.config.seed}
        found.pop("out")
        made_for = Checkpoint(folder).fingerprint
        if not self._saved_before(made_for):
            with atomic_folder(self.joint.out) as partial:
                write_predictors((kept.read(layer, self._first) for layer in layers), made_for, found, partial)

    @property
    def _first(self) -> list[int | None]:
        """Each FFN has one trial."""
        return [0] * self.spec.ffns

    def _saved_before(self, fingerprint: str) -> bool:
        """A run that was killed between writing these predictors and naming the model is being resumed."""
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
