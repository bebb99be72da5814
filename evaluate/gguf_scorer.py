"""Logits of a GGUF file, through the runner, in any of its modes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..runner.model import load


class GgufScorer:
    """A GGUF file that gives logits. In predicted mode the neurons missed are computed as well, to know the recall."""

    def __init__(self, path: Path, mode: str, threads: int | None) -> None:
        self._model = load(path, mode=mode, threads=threads)
        self._model.audit = self._model.mode == "predicted"
        self.mode = self._model.mode
        self.context = self._model.context

    def encode(self, text: str) -> list[int]:
        """The model's tokens of ``text``."""
        return self._model.tokenizer.encode(text)

    def logits(self, rows_NS: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """[S, V] for each window."""
        self._model.reset_density()
        for row_S in rows_NS:
            yield self._model.logits(row_S.tolist())

    def statistics(self) -> tuple[list[float], list[float], list[float]]:
        """Density, predicted density and recall per layer, of all that was scored."""
        density = self._model.density
        if not self._model.spec.sparse:
            return [], [], []
        if self.mode != "predicted":
            return density.fired.tolist(), [], []
        return (density.fired + density.missed).tolist(), density.predicted.tolist(), density.recall.tolist()
