"""PowerInfer's own predictor folders: `model_{i}.pt` a layer, and `config.json` with `sparse_threshold`.

They take the residual before ffn_norm; ours take the normed input, to which only threshold 0 carries over
(quant/targets/predictor_source.py says why).
"""

import json
import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..common.errors import TsconvertError
from ..model.checkpoint import Checkpoint
from ..model.tensor_names import PREDICTOR
from .folder import PredictorSet
from .predictor import Array, Predictor

if TYPE_CHECKING:
    import torch

# Shape suffixes: D model width, F neurons, R predictor rank.
THRESHOLD = "sparse_threshold"


def load_powerinfer_predictors(folder: Path, checkpoint: Checkpoint) -> PredictorSet:
    """Read PowerInfer's predictors of ``checkpoint``. Such folders do not say what model they belong to.

    Raises:
        TsconvertError: a file is missing or holds something else, or the threshold is not 0.
    """
    threshold = _threshold(folder / "config.json")
    if threshold:
        raise TsconvertError(
            f"{folder / 'config.json'}: {THRESHOLD} is {threshold:g}, and only 0 carries over to the normed input;"
            " train others with `tsconvert predictors`"
        )
    spec = checkpoint.spec
    if spec.experts:
        raise TsconvertError(
            f"{checkpoint.folder}: has experts, and PowerInfer's predictor folders take dense FFNs only; train others"
            " with `tsconvert predictors`"
        )
    ffns = []
    for layer in range(spec.layers):
        fc1_RD, fc2_FR = _read(folder / f"model_{layer}.pt")
        ffns.append([Predictor(fc1_RD=fc1_RD, fc2_FR=fc2_FR)])
    report = {"source": "PowerInfer predictor folder", "folder": str(folder)}
    return PredictorSet(model_fingerprint=checkpoint.fingerprint, ffns=ffns, report=report, normed=False)


def _threshold(path: Path) -> float:
    if not path.is_file():
        raise TsconvertError(
            f"{path.parent}: no PowerInfer predictor folder; give the one that holds config.json and model_0.pt"
        )
    try:
        threshold = float(json.loads(path.read_text(encoding="utf-8"))[THRESHOLD])
        if not math.isfinite(threshold):
            raise ValueError("no number")
        return threshold
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise TsconvertError(
            f"{path}: no {THRESHOLD} that is a number; PowerInfer's predictors have it there, get the folder again"
        ) from None


def _read(path: Path) -> tuple[Array, Array]:
    """fc1 [R, D] and fc2 [F, R] of one file; nothing but tensors is unpickled."""
    import torch

    if not path.is_file():
        raise TsconvertError(
            f"{path}: missing; PowerInfer's predictors are one model_N.pt a layer, get the folder again"
        )
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        fc1_RD, fc2_FR = (_matrix(state[f"{part}.weight"]) for part in PREDICTOR)
    except Exception:  # torn bytes make the unpickler fail in any way
        raise TsconvertError(f"{path}: not a state dict of fc1.weight and fc2.weight; get the file again") from None
    if (
        fc1_RD.ndim != 2
        or fc2_FR.ndim != 2
        or not fc1_RD.size
        or not (np.isfinite(fc1_RD).all() and np.isfinite(fc2_FR).all())
    ):
        raise TsconvertError(f"{path}: fc1.weight and fc2.weight must be finite matrices; train them again")
    return fc1_RD, fc2_FR


def _check_archive(path: Path) -> None:
    """Refuse what would make torch take more memory than the file has bytes, or run over its end.

    Raises:
        TsconvertError: the file is no archive as torch.save has written since 1.6, with its parts uncompressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            whole = sum(part.file_size for part in parts) <= path.stat().st_size
            torn = archive.testzip()
    except Exception:  # torn bytes make the library fail in many ways
        raise TsconvertError(
            f"{path}: not a file that torch.save writes since PyTorch 1.6; save it again, or get it again"
        ) from None
    if not plain or not whole or torn is not None:
        raise TsconvertError(f"{path}: its parts are compressed, overlap or are damaged; get the file again")


def _matrix(tensor: "torch.Tensor") -> Array:
    """A tensor as float32; ValueError if its strides make more of the bytes than there are."""
    if not tensor.is_floating_point() or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("no plain matrix")
    matrix: Array = tensor.float().contiguous().numpy()
    return matrix
