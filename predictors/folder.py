"""The predictor folder: a safetensors file a layer, one config.json, bound by hash to the model it was trained for."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..common.errors import TsconvertError, reason, shown
from ..common.files import atomic_folder
from .predictor import Predictor

FORMAT_VERSION = 2
LayerPredictors = Sequence[Predictor | None]


@dataclass(frozen=True, kw_only=True)
class PredictorSet:
    """All predictors of a model: ``ffns[layer][expert]``, one expert for a dense FFN.

    None leaves an FFN to exact mode.
    """

    model_fingerprint: str
    """The fingerprint of the checkpoint that they were trained for (`Checkpoint.fingerprint`)."""
    ffns: Sequence[LayerPredictors]
    report: dict[str, Any]
    """Data, tokens, and per FFN recall, density, energy kept: what `inspect` shows."""
    normed: bool = True
    """They take the FFN's input after its norm; PowerInfer's take the residual before it."""


class StoredPredictors(Sequence[LayerPredictors]):
    """The predictors in a folder, read as they are asked for: memory holds one layer's."""

    def __init__(self, folder: Path, thresholds: list[list[float | None]]) -> None:
        self.folder, self.thresholds = folder, thresholds
        self._last: tuple[int, LayerPredictors] = (-1, ())  # experts of one layer are asked for one after the other
        for layer, row in enumerate(thresholds):
            if not self._path(layer).is_file() and any(threshold is not None for threshold in row):
                raise TsconvertError(f"{self._path(layer)}: missing from the predictor folder; train them again")

    def __len__(self) -> int:
        return len(self.thresholds)

    def __getitem__(self, index: Any) -> Any:
        layer = range(len(self))[index]
        if self._last[0] != layer:
            self._last = (-1, ())  # before the next one is read
            self._last = (layer, self._read(layer))
        return self._last[1]

    def _path(self, layer: int) -> Path:
        return self.folder / _file_name(layer)

    def _read(self, layer: int) -> LayerPredictors:
        from safetensors.numpy import load_file

        row = self.thresholds[layer]
        if all(threshold is None for threshold in row):
            return [None] * len(row)
        try:
            tensors = load_file(self._path(layer))
        except Exception as error:  # also KeyError and AttributeError, of a type that NumPy lacks
            raise TsconvertError(f"{self._path(layer)}: cannot be read ({reason(error)}); train them again") from None
        found: list[Predictor | None] = []
        for expert, threshold in enumerate(row):
            prefix = f"experts.{expert}."
            own = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
            try:
                found.append(None if threshold is None else Predictor.from_arrays(own, threshold))
            except ValueError as error:
                raise TsconvertError(f"{self._path(layer)}: expert {expert}: {error}; train them again") from None
        return found


def save_predictors(predictors: PredictorSet, out: Path) -> None:
    """Write a predictor folder; it appears whole or not at all."""
    with atomic_folder(out) as partial:
        write_predictors(predictors.ffns, predictors.model_fingerprint, predictors.report, partial)


def write_predictors(
    layers: Iterable[LayerPredictors], model_fingerprint: str, report: dict[str, Any], folder: Path
) -> None:
    """Write what a predictor folder holds, layer by layer; the arguments are `PredictorSet`'s."""
    from safetensors.numpy import save_file

    thresholds = []
    for layer, experts in enumerate(layers):
        thresholds.append([None if predictor is None else predictor.threshold for predictor in experts])
        tensors = {
            f"experts.{expert}.{name}": np.ascontiguousarray(array)
            for expert, predictor in enumerate(experts)
            if predictor is not None
            for name, array in predictor.arrays().items()
        }
        if tensors:
            save_file(tensors, folder / _file_name(layer))
    config = {
        "format": "tsconvert predictors",
        "format_version": FORMAT_VERSION,
        "model_fingerprint": model_fingerprint,
        "input": "normed",
        "thresholds": thresholds,
        "report": report,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_predictors(folder: Path, model_fingerprint: str | None = None) -> PredictorSet:
    """Open a predictor folder; weights are read as they are asked for.

    Args:
        folder: what `save_predictors` wrote.
        model_fingerprint: of the model that they are to be used with; None skips the comparison.

    Raises:
        TsconvertError: no predictor folder, another format version, or predictors of another model.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version, made_for = config["format_version"], config["model_fingerprint"]
        thresholds = [[None if t is None else float(t) for t in row] for row in config["thresholds"]]
        report = config.get("report", {})
        told = report.get("ffns", []) if isinstance(report, dict) else [None]
        if not isinstance(made_for, str) or not thresholds or not all(isinstance(each, dict) for each in told):
            raise ValueError("config.json lacks what training writes there")
        if not all(t is None or math.isfinite(t) for row in thresholds for t in row):
            raise ValueError("a threshold is NaN or infinite")
    except FileNotFoundError:
        raise TsconvertError(
            f"{folder}: no predictor folder ({path.name} is missing); `tsconvert predictors` makes one"
        ) from None
    except Exception as error:
        raise TsconvertError(
            f"{folder}: not a predictor folder that can be read ({reason(error)}); train them again"
        ) from None
    if version != FORMAT_VERSION:
        raise TsconvertError(
            f"{path}: format version {shown(version)}, this tsconvert reads {FORMAT_VERSION}; train them again"
        )
    if model_fingerprint is not None and made_for != model_fingerprint:
        raise TsconvertError(
            f"{folder}: these predictors were trained for another model (fingerprint {made_for[:12]}, this one is"
            f" {model_fingerprint[:12]}); train them for this one"
        )
    stored = StoredPredictors(folder, thresholds)
    return PredictorSet(model_fingerprint=made_for, ffns=stored, report=report)


def _file_name(layer: int) -> str:
    return f"layer-{layer:05}.safetensors"
