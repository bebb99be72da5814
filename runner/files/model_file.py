"""The GGUF files that the runner reads: tsconvert's `sparse` target, PowerInfer's, and llama.cpp's of known families.

What they differ in (keys, names, the layout of the down matrix, what predictors see) ends here: a `ModelFile` looks the
same whatever it was read from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError, shown
from ...model.families import FAMILIES, family_of_gguf
from ...model.files.gguf.file import POWERINFER, SPARSE, GgufFile, GgufTensor
from ...model.files.gguf.keys import Keys
from ...model.files.kinds import gguf_kind
from ...model.spec import ModelSpec
from ...quant.targets import separate_predictors
from ..rope import Rope
from .spec import Dialect, read_ropes, read_spec
from .tensors import read_tensors

FORMAT_VERSIONS = (1, 2)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A GGUF file that the runner can run, checked."""

    file: GgufFile
    dialect: str
    """`sparse`, `powerinfer` or `llama.cpp`."""
    spec: ModelSpec
    rope: Rope
    local_rope: Rope
    """Of layers with a window; the same object where there is one rope."""
    halves: bool
    """Rope turns rows of a head half of what turns apart, not neighbours."""
    transposed: bool
    """The down matrix has one row a neuron, so rows can be left out."""
    attention_share: float | None = None
    """The share of attention's outputs, each token's largest, that predicted mode keeps; None: all of them."""
    normed_predictors: bool
    """Predictors see the FFN's input after its norm."""
    linear_predictors: bool = False
    """No relu is between their matrices."""
    tensors: Mapping[tuple[str, int | None], GgufTensor]
    """By role and layer; experts stacked in front."""
    thresholds: npt.NDArray[np.float32]
    """[layers, FFNs of a layer], NaN where there is no predictor."""

    def rope_of(self, layer: int) -> Rope:
        """The rope of a layer that has one."""
        windowed = self.spec.sliding_window is not None and layer not in self.spec.full_layers
        return self.local_rope if windowed else self.rope

    @property
    def has_predictors(self) -> bool:
        """Some FFN has a predictor."""
        return bool(np.isfinite(self.thresholds).any())

    @property
    def approximates(self) -> bool:
        """Predicted mode leaves something out: what predictors do not name, or small outputs of attention."""
        return self.has_predictors or self.attention_share is not None

    @property
    def rank(self) -> int:
        """The largest rank of a predictor, 0 without."""
        return max((tensor.shape[-2] for (role, _), tensor in self.tensors.items() if role == "fc1"), default=0)


def open_model(path: str | Path) -> ModelFile:
    """Read and check a GGUF file for the runner.

    Raises:
        TsconvertError: no GGUF file, damaged, or none of the three kinds; the message says which.
    """
    file = GgufFile(path)
    name = file.architecture
    if file.magic == POWERINFER:
        if name not in ("bamboo", "llama"):
            raise TsconvertError(
                f"{path}: PowerInfer file of architecture {shown(name)}; the runner knows bamboo and llama, run it with"
                " PowerInfer"
            )
        return _powerinfer(file, "drelu" if name == "bamboo" else "reglu")
    if name == SPARSE:
        return _sparse(file)
    known = dict.fromkeys(family.gguf.architecture for family in FAMILIES.values())
    if name in known:
        return _llama_cpp(file)
    if other := gguf_kind(name, str(file.metadata.get("general.type", ""))):
        raise TsconvertError(f"{path}: is {other}")
    raise TsconvertError(
        f"{path}: architecture {shown(name)}; the runner knows {SPARSE}, {', '.join(known)} and PowerInfer's files, run"
        " it with the engine that it was made for"
    )


def _made(keys: Keys, dialect: Dialect, spec: ModelSpec, **more: Any) -> ModelFile:
    rope, local_rope = read_ropes(keys, spec, dialect)
    return ModelFile(
        file=keys.file, dialect=dialect.name, spec=spec, rope=rope, local_rope=local_rope, halves=dialect.halves,
        transposed=dialect.transposed, attention_share=dialect.attention_share, **more,
    )  # fmt: skip


def _sparse(file: GgufFile) -> ModelFile:
    apart = separate_predictors.find_separate(file)
    keys = Keys(file)
    version = keys.whole("format_version")
    if version not in FORMAT_VERSIONS:
        raise TsconvertError(
            f"{file.path}: sparse format {shown(version)}, this tsconvert reads"
            f" {' and '.join(map(str, FORMAT_VERSIONS))}; export it again"
        )
    dialect = Dialect(name="sparse", transposed=True, attention_share=_attention_share(keys, version))
    spec = read_spec(keys, dialect, str(keys.get("activation", "drelu")))
    if dialect.attention_share is not None and not spec.sparse:
        raise TsconvertError(
            f"{file.path}: feature attention_share of a {spec.activation} model, which has no predicted mode; export it"
            " again"
        )
    tensors = read_tensors(file, spec, dialect, apart)
    thresholds = np.full((spec.layers, spec.ffns), np.nan, np.float32)
    given = (apart or file).metadata.get(f"{SPARSE}.predictor.threshold", [])
    if given:
        numbers = isinstance(given, list) and all(isinstance(each, int | float) for each in given)
        if not numbers or len(given) != thresholds.size:
            raise TsconvertError(
                f"{file.path}: {SPARSE}.predictor.threshold needs {thresholds.size} numbers; export it again"
            )
        thresholds[:] = np.array(given, np.float32).reshape(thresholds.shape)
    for layer in range(spec.layers):
        if np.isfinite(thresholds[layer]).any() and ("fc1", layer) not in tensors:
            raise TsconvertError(f"{file.path}: layer {layer} has a threshold and no predictor; export it again")
    linear = version > 1 and "linear_predictors" in keys.get("features", [])
    return _made(
        keys, dialect, spec, normed_predictors=True, linear_predictors=linear, tensors=tensors, thresholds=thresholds
    )


def _attention_share(keys: Keys, version: int) -> float | None:
    features = keys.get("features", [])
    if version == 1 or not isinstance(features, list) or "attention_share" not in features:
        return None
    share = keys.number("attention.output_share")
    if not 0 < share <= 1:
        raise TsconvertError(
            f"{keys.file.path}: {SPARSE}.attention.output_share is {share:g}, it must be above 0 and at most 1;"
            " export it again"
        )
    return share


def _powerinfer(file: GgufFile, activation: str) -> ModelFile:
    keys, dialect = Keys(file), Dialect(name="powerinfer", transposed=True)
    spec = read_spec(keys, dialect, activation)
    tensors = read_tensors(file, spec, dialect)
    threshold = file.metadata.get("powerinfer.sparse_threshold", 0.0)
    if not isinstance(threshold, float):
        raise TsconvertError(
            f"{file.path}: key powerinfer.sparse_threshold is {shown(threshold)}, it must be a number; write the file"
            " again"
        )
    thresholds = np.full((spec.layers, 1), np.nan, np.float32)
    for layer in range(spec.layers):
        if ("fc1", layer) in tensors:
            thresholds[layer] = threshold
    return _made(keys, dialect, spec, normed_predictors=False, tensors=tensors, thresholds=thresholds)


def _llama_cpp(file: GgufFile) -> ModelFile:
    keys = Keys(file)
    windowed = bool(keys.whole("attention.sliding_window", 0))
    family = family_of_gguf(file.architecture, experts=keys.whole("expert_count", 0) > 0, windowed=windowed)
    if family is None:
        raise TsconvertError(
            f"{file.path}: architecture {shown(file.architecture)} with expert_count {keys.whole('expert_count', 0)};"
            " run it with the engine that it was made for"
        )
    dialect = Dialect(name="llama.cpp", family=family)
    spec = read_spec(keys, dialect, "swiglu")
    none = np.full((spec.layers, spec.ffns), np.nan, np.float32)
    tensors = read_tensors(file, spec, dialect)
    return _made(keys, dialect, spec, normed_predictors=True, tensors=tensors, thresholds=none)
