"""Logits of a Hugging Face checkpoint, layer by layer through the sweep."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ..convert.checkpoint import open_checkpoint
from ..convert.corpora import load_tokenizer
from ..convert.layers import Layer
from ..convert.sweep import Stream, sweep


class CheckpointScorer:
    """A checkpoint that gives logits."""

    mode = "checkpoint"

    def __init__(self, model: str) -> None:
        self.checkpoint = open_checkpoint(model)
        self._tokenizer = load_tokenizer(self.checkpoint.folder)
        self.context = self.checkpoint.spec.context
        self._density = _Density()

    def encode(self, text: str) -> list[int]:
        """The model's tokens of ``text``."""
        return list(self._tokenizer(text).input_ids)

    def logits(self, rows_NS: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        """[S, V] for each window."""
        visitors = [self._density] if self.checkpoint.spec.sparse else []
        stream = sweep(self.checkpoint, torch.from_numpy(rows_NS), visitors)
        for logits_SV in stream.logits(slice(None)):
            yield logits_SV.numpy()

    def statistics(self) -> tuple[list[float], list[float], list[float]]:
        """The density per layer; a checkpoint predicts nothing."""
        return self._density.layers, [], []


class _Density:
    """A visitor that counts what fires."""

    def __init__(self) -> None:
        self.layers: list[float] = []

    @torch.no_grad()
    def visit(self, layer: Layer, stream: Stream) -> str:
        fired, seen = 0, 0
        for x_TD in stream.inputs(layer):
            for _, h_TF, _ in layer.ffn_parts(x_TD):
                fired += int((h_TF != 0).sum())
                seen += h_TF.numel()
        self.layers.append(fired / seen)
        return f"density {fired / seen:.2f}"
