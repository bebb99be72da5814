"""Logits of a checkpoint that tsconvert does not convert but transformers runs: the whole model, in memory."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ...common.errors import TsconvertError, reason
from ...model.files.safetensors_files import shard_files
from ...text.tokenizer import load_tokenizer
from .activity import Activity
from .checkpoint_scorer import leading_token, start_token
from .divergence import Floats
from .windows import Windows


class TransformersScorer:
    """A causal language model of any architecture that transformers has; none of the folder's code is run."""

    mode = "checkpoint"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        self.bos, self.start = leading_token(self._tokenizer), start_token(self._tokenizer)
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        except Exception as error:
            raise TsconvertError(
                f"{folder}: transformers cannot load it ({reason(error)}); give a model with .safetensors files, of an"
                " architecture that transformers has itself"
            ) from None
        self._model = model.eval()
        self.context = int(getattr(model.config, "max_position_embeddings", 2048))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weight files."""
        digest = hashlib.sha256()
        for file in shard_files(self._folder):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """As `Scorer.encode`."""
        return list(self._tokenizer(text, split_special_tokens=not parse_special).input_ids)

    @torch.no_grad()
    def logits(self, windows: Windows) -> Iterator[Floats]:
        """As `Scorer.logits`."""
        for row_S, first in zip(windows.rows_NS, windows.first_N, strict=True):
            logits_1SV = self._model(input_ids=torch.from_numpy(row_S[None])).logits
            yield logits_1SV[0, first:-1].numpy()

    def activity(self) -> Activity:
        """Nothing: what its neurons do is not known."""
        return Activity.empty(1, 1, 1)
