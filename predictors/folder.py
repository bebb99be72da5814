"""The predictor folder: one safetensors file, one config.json, bound by hash to the model it was trained for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..convert.errors import TsconvertError
from ..convert.writer import atomic_folder

FORMAT_VERSION = 1
WEIGHTS = "predictors.safetensors"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """fc2 . relu(fc1 . x) >= threshold says that a neuron fires; x is the FFN's input after its norm.

    Shapes (R rank, D model width, F neurons): ``fc1_RD``, ``fc2_FR``, both float32.
    """

    fc1_RD: Array
    fc2_FR: Array
    threshold: float = 0.0
    fired_F: Array | None = None
    """How often each neuron fired on the calibration tokens, if that was counted."""

    @property
    def rank(self) -> int:
        """R, the rows of fc1."""
        return int(self.fc1_RD.shape[0])

    def logits(self, x_TD: Array) -> Array:
        """The logits [T, F] of normed inputs [T, D]; a neuron is predicted to fire where they reach the threshold."""
        hidden_TR = np.maximum(x_TD @ self.fc1_RD.T, 0)
        return np.asarray(hidden_TR @ self.fc2_FR.T, np.float32)

    def folded(self, norm_D: Array) -> "Predictor":
        """The predictor of the input before the norm, whose weight is ``norm_D``.

        A bias-free ReLU network is positively homogeneous and RMSNorm scales each token by a positive number, so the
        signs of the logits stay the same; a threshold other than 0 does not carry over.

        Raises:
            TsconvertError: the threshold is not 0.
        """
        if self.threshold:
            raise TsconvertError(f"a predictor with threshold {self.threshold:g} cannot take the input before the norm")
        return Predictor(fc1_RD=self.fc1_RD * norm_D[None, :], fc2_FR=self.fc2_FR)


@dataclass(frozen=True, kw_only=True)
class PredictorSet:
    """All predictors of a model: ``ffns[layer][expert]``, one expert for a dense FFN.

    None leaves an FFN to exact mode.
    """

    model_fingerprint: str
    """Of the checkpoint (`Checkpoint.fingerprint`) that they were trained for."""
    ffns: list[list[Predictor | None]]
    report: dict[str, Any]
    """Data, tokens, and per FFN recall, density, energy kept: what `inspect` shows."""


def save_predictors(predictors: PredictorSet, out: Path) -> None:
    """Write a predictor folder; it appears whole or not at all."""
    from safetensors.numpy import save_file

    tensors: dict[str, Array] = {}
    thresholds = []
    for layer, experts in enumerate(predictors.ffns):
        thresholds.append([None if predictor is None else predictor.threshold for predictor in experts])
        for expert, predictor in enumerate(experts):
            if predictor is not None:
                tensors[_name(layer, expert, "fc1")] = np.ascontiguousarray(predictor.fc1_RD, np.float32)
                tensors[_name(layer, expert, "fc2")] = np.ascontiguousarray(predictor.fc2_FR, np.float32)
                if predictor.fired_F is not None:
                    tensors[_name(layer, expert, "fired")] = np.ascontiguousarray(predictor.fired_F, np.float32)
    config = {
        "format": "tsconvert predictors",
        "format_version": FORMAT_VERSION,
        "model_fingerprint": predictors.model_fingerprint,
        "input": "normed",
        "thresholds": thresholds,
        "report": predictors.report,
    }
    with atomic_folder(out) as partial:
        save_file(tensors, partial / WEIGHTS)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_predictors(folder: Path, model_fingerprint: str | None = None) -> PredictorSet:
    """Read a predictor folder.

    Args:
        folder: what `save_predictors` wrote.
        model_fingerprint: of the model that they are to be used with; None skips the comparison.

    Raises:
        TsconvertError: no predictor folder, another format version, or predictors of another model.
    """
    from safetensors.numpy import load_file

    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        version, made_for, thresholds = config["format_version"], config["model_fingerprint"], config["thresholds"]
    except FileNotFoundError as error:
        raise TsconvertError(
            f"{folder}: no predictor folder ({Path(error.filename or path).name} is missing)"
        ) from None
    except Exception as error:
        raise TsconvertError(f"{folder}: not a predictor folder that can be read ({error})") from None
    if version != FORMAT_VERSION:
        raise TsconvertError(
            f"{path}: format version {version}, this tsconvert reads {FORMAT_VERSION}; train them again"
        )
    if model_fingerprint is not None and made_for != model_fingerprint:
        raise TsconvertError(
            f"{folder}: these predictors were trained for another model (fingerprint {made_for[:12]}, this one is"
            f" {model_fingerprint[:12]}); train them for this one"
        )
    ffns: list[list[Predictor | None]] = [
        [_predictor(tensors, layer, expert, threshold) for expert, threshold in enumerate(row)]
        for layer, row in enumerate(thresholds)
    ]
    return PredictorSet(model_fingerprint=made_for, ffns=ffns, report=config.get("report", {}))


def _predictor(tensors: dict[str, Array], layer: int, expert: int, threshold: float | None) -> Predictor | None:
    if threshold is None:
        return None
    fc1, fc2 = _name(layer, expert, "fc1"), _name(layer, expert, "fc2")
    if fc1 not in tensors or fc2 not in tensors or tensors[fc1].shape[0] != tensors[fc2].shape[1]:
        raise TsconvertError(f"{WEIGHTS}: {fc1} and {fc2} are missing or do not fit each other; train them again")
    fired_F = tensors.get(_name(layer, expert, "fired"))
    if fired_F is not None and fired_F.shape != tensors[fc2].shape[:1]:
        raise TsconvertError(f"{WEIGHTS}: {fc2} and its counts of firing do not fit each other; train them again")
    return Predictor(fc1_RD=tensors[fc1], fc2_FR=tensors[fc2], threshold=float(threshold), fired_F=fired_F)


def _name(layer: int, expert: int, part: str) -> str:
    return f"layers.{layer}.experts.{expert}.{part}.weight"
