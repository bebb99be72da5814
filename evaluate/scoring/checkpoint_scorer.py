"""Logits of a Hugging Face checkpoint, layer by layer through the sweep, so that its size does not matter."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...model.checkpoint import Checkpoint
from ...model.layers import Layer
from ...model.sweep import Stream, sweep
from ...text.tokenizer import load_tokenizer
from .activity import Activity
from .divergence import Floats
from .windows import Windows


class FolderScorer:
    """What scorers of checkpoint folders have in common: the tokenizer, as `Scorer` has it."""

    mode = "checkpoint"

    def __init__(self, folder: Path) -> None:
        self._folder, self._tokenizer = folder, load_tokenizer(folder)
        bos: int | None = self._tokenizer.bos_token_id
        self.bos = bos if list(self._tokenizer("a").input_ids)[:1] == [bos] else None
        self.start = int(next((each for each in (bos, self._tokenizer.eos_token_id) if each is not None), 0))

    @functools.cached_property
    def tokenizer_fingerprint(self) -> str:
        """SHA-256 of the files that transformers reads a tokenizer from."""
        digest = hashlib.sha256()
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            if (self._folder / name).is_file():
                digest.update(name.encode() + (self._folder / name).read_bytes())
        return digest.hexdigest()

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """As `Scorer.encode`."""
        return list(self._tokenizer(text, split_special_tokens=not parse_special).input_ids)


class CheckpointScorer(FolderScorer):
    """A checkpoint that gives logits."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint(folder)
        super().__init__(folder)
        self.context = self.checkpoint.spec.context
        self._counter: _Counter | None = None

    @property
    def fingerprint(self) -> str:
        """As `Scorer.fingerprint`."""
        return self.checkpoint.fingerprint

    def logits(self, windows: Windows) -> Iterator[Floats]:
        """As `Scorer.logits`."""
        self._counter = _Counter(self.checkpoint, windows)
        visitors = [self._counter] if self.checkpoint.spec.sparse and windows.counting else []
        stream = sweep(self.checkpoint, torch.from_numpy(windows.rows_NS), visitors)
        for logits_SV, first in zip(stream.logits(slice(None)), windows.first_N, strict=True):
            yield logits_SV[first:-1].numpy()

    def activity(self) -> Activity:
        """As `Scorer.activity`; a checkpoint predicts nothing."""
        return self._counter.activity if self._counter else Activity.empty(1, 1, 1)


class _Counter:
    """A visitor that counts what fires."""

    def __init__(self, checkpoint: Checkpoint, windows: Windows) -> None:
        spec = checkpoint.spec
        self.activity = Activity.empty(len(windows.corpora), spec.layers, spec.ffns)
        self._neurons = spec.neurons
        self._corpus_T = np.repeat(np.asarray(windows.corpus_N), windows.rows_NS.shape[1])

    @torch.no_grad()
    def visit(self, layer: Layer, stream: Stream) -> str:
        at = 0
        for x_TD in stream.inputs(layer):
            corpus_T = self._corpus_T[at : at + len(x_TD)]
            at += len(x_TD)
            for expert, (token, _) in enumerate(layer.route(x_TD)):
                fired_T = (layer.activations(x_TD[token], expert) != 0).sum(-1).cpu().numpy()
                self._add(layer.index, expert, corpus_T[token.cpu().numpy()], fired_T)
        found = self.activity
        share = found.fired_CLE[:, layer.index].sum() / max(1.0, found.seen_CLE[:, layer.index].sum())
        return f"density {share:.2f}"

    def _add(self, layer: int, expert: int, corpus_T: npt.NDArray[Any], fired_T: npt.NDArray[Any]) -> None:
        found = self.activity
        np.add.at(found.fired_CLE[:, layer, expert], corpus_T, fired_T)
        np.add.at(found.tokens_CLE[:, layer, expert], corpus_T, 1)
        np.add.at(found.seen_CLE[:, layer, expert], corpus_T, self._neurons)
