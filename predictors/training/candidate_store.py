"""The candidates for each FFN's predictor, on the disk until one of them is chosen: memory holds one layer's."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...common import processes
from ...common.files import atomic_file
from ...model.files.journal import KEPT
from ..predictor import Predictor
from ..report import FFNReport

Candidate = tuple[Predictor | None, FFNReport]
"""A predictor of one FFN, or None, and what it does."""


class CandidateStore:
    """For each layer and FFN the candidates made. Process 0 writes and reads, for all processes.

    Args:
        folder: where the files are, one a layer; usually the partial output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, layer: int) -> bool:
        return bool(processes.broadcast(self._path(layer).is_file()))

    def save(self, layer: int, ffns: Sequence[Sequence[Candidate]]) -> None:
        """Store the candidates of ``layer``; they are on the disk when this returns."""
        from safetensors.numpy import save

        if processes.rank():
            return
        tensors = {
            f"{expert}.{i}.{name}": np.ascontiguousarray(array)
            for expert, candidates in enumerate(ffns)
            for i, (predictor, _) in enumerate(candidates)
            if predictor is not None
            for name, array in predictor.arrays().items()
        }
        reports = [[report.to_json() for _, report in candidates] for candidates in ffns]
        with atomic_file(self._path(layer)) as stream:
            stream.write(save(tensors, {"reports": json.dumps(reports)}))

    def load(self, layer: int, chosen: Sequence[int | None]) -> list[Predictor | None]:
        """For each FFN of ``layer`` the predictor of the candidate chosen; None for none."""
        return processes.broadcast([] if processes.rank() else self.read(layer, chosen))

    def reports(self, layer: int) -> list[list[FFNReport]]:
        """What all candidates of ``layer`` do, by FFN."""
        return processes.broadcast([] if processes.rank() else self._reports(layer))

    def read(self, layer: int, chosen: Sequence[int | None]) -> list[Predictor | None]:
        """What `load` gives, in process 0 alone."""
        from safetensors import safe_open

        predictors: list[Predictor | None] = []
        reports = self._reports(layer)
        with safe_open(self._path(layer), "numpy") as file:
            for expert, i in enumerate(chosen):
                prefix = f"{expert}.{i}."
                found = {n.removeprefix(prefix): file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
                if i is None or not found:
                    predictors.append(None)
                else:
                    predictors.append(Predictor.from_arrays(found, reports[expert][i].threshold))
        return predictors

    def _reports(self, layer: int) -> list[list[FFNReport]]:
        from safetensors import safe_open

        with safe_open(self._path(layer), "numpy") as file:
            stored = json.loads(file.metadata()["reports"])
        return [[FFNReport(**fields) for fields in candidates] for candidates in stored]

    def _path(self, layer: int) -> Path:
        return self.folder / f"predictors-{layer:05}{KEPT}"
