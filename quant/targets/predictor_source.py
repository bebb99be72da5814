"""The predictors that go into a file, wherever they are: a predictor folder, ours or PowerInfer's, or the checkpoint.

Those of our folders take the FFN's input after its norm and have calibrated thresholds. PowerInfer's folders and those
inside a TurboSparse release take the residual before the norm, with threshold 0. RMSNorm is a positive scale per token
times a weight per channel, and without biases a predictor is positively homogeneous, so moving the weights of the norm
in or out of fc1 keeps every sign.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.tensor_names import PREDICTOR, Place
from ...predictors.folder import PredictorSet, load_predictors
from ...predictors.predictor import Predictor
from ..gguf.tensor_plan import Rows
from .checkpoint_rows import checked


class PredictorSource:
    """The predictors of a checkpoint, one FFN at a time.

    Args:
        with_relu: the engine knows ReLU networks alone: linear predictors are given as such, of twice the rank.
    """

    def __init__(self, checkpoint: Checkpoint, folder: Path | None, *, with_relu: bool) -> None:
        self.checkpoint, self._with_relu = checkpoint, with_relu
        self.folder = folder
        self._set: PredictorSet | None = None
        if folder is not None and (folder / "model_0.pt").is_file():
            from ...predictors.powerinfer_folder import load_powerinfer_predictors

            self._set = load_powerinfer_predictors(folder, checkpoint)
        elif folder is not None:
            self._set = load_predictors(folder, checkpoint.fingerprint)
        spec = checkpoint.spec
        if self._set is not None:
            shape = (len(self._set.ffns), *{len(experts) for experts in self._set.ffns})
            if shape != (spec.layers, spec.ffns):
                raise TsconvertError(f"{self.folder}: the layers and experts are not this model's; train them again")
        self._normed = self._set is not None and self._set.normed
        kinds: set[bool] = set()
        self.ranks: list[list[int]] = []
        """Per layer and expert; 0 where an FFN has no predictor."""
        self.thresholds: list[list[float]] = []
        """Per layer and expert, for the normed input; NaN where an FFN has no predictor."""
        for layer in range(spec.layers):
            self.ranks.append([self._rank(layer, expert) for expert in range(spec.ffns)])
            trained = [self._trained(layer, expert) for expert in range(spec.ffns)]
            kinds |= {predictor.linear for predictor in trained if predictor is not None}
            found = [predictor.threshold if predictor is not None else 0.0 for predictor in trained]
            self.thresholds.append(
                [at if rank else float("nan") for at, rank in zip(found, self.ranks[-1], strict=True)]
            )
        if len(kinds) > 1:
            raise TsconvertError(f"{self.folder}: some of its predictors are linear and some not; train them again")
        self.linear = kinds == {True}
        """No relu is between fc1 and fc2."""

    @property
    def report(self) -> dict[str, Any]:
        """The report of their training; empty for those inside a checkpoint."""
        return self._set.report if self._set is not None else {}

    @property
    def stored_as(self) -> str:
        """The type that they were trained to be stored in; F16 where that is not known."""
        return str(self.report.get("stored_as", "F16"))

    def normed(self, layer: int, expert: int) -> Predictor:
        """The predictor of the FFN's input after its norm."""
        predictor = self._read(layer, expert)
        if self._normed:
            return predictor
        norm_D = self._norm(layer)
        if not norm_D.all():
            norm = self.checkpoint.info(Place("ffn_norm", layer))
            raise TsconvertError(
                f"{norm.file}: {norm.name} holds zeros, so predictors of the input before it cannot be moved behind it;"
                " train others with `tsconvert predictors` and give --predictors"
            )
        return replace(predictor, fc1_RD=predictor.fc1_RD / norm_D[None, :])

    def before_norm(self, layer: int, expert: int) -> Predictor:
        """The predictor of the residual before the norm, for threshold 0 whatever was calibrated."""
        predictor = self._read(layer, expert)
        return replace(predictor, threshold=0.0).folded(self._norm(layer)) if self._normed else predictor

    def fired(self, layer: int, expert: int) -> Rows | None:
        """How often each neuron [F] fired on the tokens that calibrated its predictor; None if that is not known."""
        predictor = self._trained(layer, expert)
        return predictor.fired_F if predictor is not None else None

    def _trained(self, layer: int, expert: int) -> Predictor | None:
        """The predictor in a folder, as the engine knows it."""
        predictor = self._set.ffns[layer][expert] if self._set is not None else None
        return predictor.with_relu() if predictor is not None and self._with_relu else predictor

    def _norm(self, layer: int) -> Rows:
        return checked(self.checkpoint, Place("ffn_norm", layer)) + np.float32(self.checkpoint.spec.norm_offset)

    def _read(self, layer: int, expert: int) -> Predictor:
        if self._set is None:
            fc1, fc2 = self._places(layer, expert)
            return Predictor(fc1_RD=checked(self.checkpoint, fc1), fc2_FR=checked(self.checkpoint, fc2))
        predictor = self._trained(layer, expert)
        if predictor is None:
            raise ValueError(f"layer {layer}, expert {expert} has no predictor")
        if not (np.isfinite(predictor.fc1_RD).all() and np.isfinite(predictor.fc2_FR).all()):
            raise TsconvertError(
                f"{self.folder}: the predictor of layer {layer}, expert {expert} holds NaN or infinity; train it again"
            )
        return predictor

    def _rank(self, layer: int, expert: int) -> int:
        if self._set is None:
            fc1, fc2 = self._places(layer, expert)
            if fc1 not in self.checkpoint or fc2 not in self.checkpoint:
                return 0
            fc1_shape, fc2_shape = self.checkpoint.info(fc1).shape, self.checkpoint.info(fc2).shape
        elif (predictor := self._trained(layer, expert)) is None:
            return 0
        else:
            fc1_shape, fc2_shape = predictor.fc1_RD.shape, predictor.fc2_FR.shape
        rank, spec = fc1_shape[0], self.checkpoint.spec
        if fc1_shape != (rank, spec.width) or fc2_shape != (spec.neurons, rank):
            where = self.folder or self.checkpoint.folder
            raise TsconvertError(
                f"{where}: the predictor of layer {layer}, expert {expert} has shapes {list(fc1_shape)} and"
                f" {list(fc2_shape)}; this model needs [R, {spec.width}] and [{spec.neurons}, R], train it again"
            )
        return rank

    def _places(self, layer: int, expert: int) -> list[Place]:
        return [Place(part, layer, expert if self.checkpoint.spec.experts else None) for part in PREDICTOR]


def find_predictors(checkpoint: Checkpoint, folder: Path | None, *, with_relu: bool) -> PredictorSource | None:
    """The predictors in ``folder``, or those inside the checkpoint, or None; see `PredictorSource`.

    Raises:
        TsconvertError: the folder holds another model's, or predictors of other shapes.
    """
    found = folder is not None or checkpoint.has_predictors
    return PredictorSource(checkpoint, folder, with_relu=with_relu) if found else None
