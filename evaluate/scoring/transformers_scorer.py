"""Logits of a checkpoint that tsconvert does not convert but transformers runs: the whole model, in memory."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...common.errors import TsconvertError, reason
from ...model.files.safetensors_files import shard_files
from .activity import Activity
from .checkpoint_scorer import FolderScorer
from .divergence import Floats
from .windows import Windows


class TransformersScorer(FolderScorer):
    """A causal language model of any architecture that transformers has; none of the folder's code is run."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        super().__init__(folder)
        self.context = int(getattr(self._of(AutoConfig), "max_position_embeddings", 2048))

    @functools.cached_property
    def _model(self) -> Any:
        """The model, read when it is needed first."""
        from transformers import AutoModelForCausalLM

        return self._of(AutoModelForCausalLM, dtype=torch.float32, use_safetensors=True).eval()

    def _of(self, kind: Any, **more: Any) -> Any:
        try:
            return kind.from_pretrained(self._folder, local_files_only=True, trust_remote_code=False, **more)
        except Exception as error:
            raise TsconvertError(
                f"{self._folder}: transformers cannot load it ({reason(error)}); give a model with .safetensors files,"
                " of an architecture that transformers has itself"
            ) from None

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files."""
        digest = hashlib.sha256()
        for file in shard_files(self._folder):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    @torch.no_grad()
    def logits(self, windows: Windows) -> Iterator[Floats]:
        """As `Scorer.logits`."""
        for row_S, first in zip(windows.rows_NS, windows.first_N, strict=True):
            logits_1SV = self._model(input_ids=torch.from_numpy(row_S[None])).logits
            yield logits_1SV[0, first:-1].numpy()

    def activity(self) -> Activity:
        """Nothing: what its neurons do is not known."""
        return Activity.empty(1, 1, 1)
