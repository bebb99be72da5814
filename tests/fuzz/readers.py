"""The families of inputs: how one is made, what reads it, and what share of a run it gets."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import checkpoint_inputs
import gguf_inputs
import predictor_inputs
import tokenizer_inputs

Make = Callable[[random.Random, Path], None]
Read = Callable[[Path, random.Random], None]


@dataclass(frozen=True)
class Family:
    """One kind of file."""

    make: Make
    """Writes an input into a folder."""
    read: Read
    """What is not to fail in any way but a TsconvertError."""
    share: float


@cache
def _bases() -> dict[str, gguf_inputs.Description]:
    return gguf_inputs.bases()


def _make_gguf(rng: random.Random, folder: Path) -> None:
    base = _bases()[rng.choice(list(_bases()))]
    (folder / "m.gguf").write_bytes(gguf_inputs.mutate_gguf(rng, base))


def _read_gguf(folder: Path, rng: random.Random) -> None:
    gguf_inputs.read_gguf(folder / "m.gguf", rng)


FAMILIES: dict[str, Family] = {
    "gguf": Family(_make_gguf, _read_gguf, 0.40),
    "safetensors": Family(checkpoint_inputs.make_safetensors, checkpoint_inputs.read_checkpoint, 0.15),
    "index": Family(checkpoint_inputs.make_index, checkpoint_inputs.read_checkpoint, 0.06),
    "config": Family(checkpoint_inputs.make_config, checkpoint_inputs.read_checkpoint, 0.14),
    "tokenizer": Family(tokenizer_inputs.make_tokenizer, tokenizer_inputs.read_tokenizer, 0.03),
    "predictors": Family(predictor_inputs.make_predictors, predictor_inputs.read_predictors, 0.09),
    "pt": Family(predictor_inputs.make_pt, predictor_inputs.read_pt, 0.06),
    "profile": Family(predictor_inputs.make_profile, predictor_inputs.read_profile, 0.07),
}
