"""The files of a sparse checkpoint beside its weights: configuration, modelling code, tokenizer."""

import copy
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.files import write_json
from .checkpoint import Checkpoint
from .families import FAMILIES
from .spec import ModelSpec

_MODELING = "modeling_turbosparse"
_COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "tekken.json",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The thresholds of all layers' FFNs; see `ModelSpec.thresholds`."""

    own: tuple[float, ...] = ()
    up: tuple[float, ...] = ()

    @classmethod
    def of(cls, ffns: Iterable[Any]) -> "Thresholds":
        """Those of FFNs, or of what reports them, in the order of the layers."""
        pairs = [(ffn.threshold, ffn.up_threshold) for ffn in ffns]
        return cls(own=tuple(own for own, _ in pairs), up=tuple(up for _, up in pairs))


def sparse_config(
    checkpoint: Checkpoint, activation: str, dtype: str | None = None, thresholds: Thresholds | None = None
) -> dict[str, Any]:
    """The config.json of the sparse model that ``checkpoint`` becomes.

    Args:
        dtype: of the weights, where it is another one.
        thresholds: None keeps those of ``checkpoint``.
    """
    config = copy.deepcopy(checkpoint.config)
    family = FAMILIES[checkpoint.spec.family]
    name = family.sparse_prefix
    config |= {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": family.sparse_type,
        "auto_map": {
            "AutoConfig": f"{_MODELING}.{name}Config",
            "AutoModelForCausalLM": f"{_MODELING}.{name}ForCausalLM",
        },
        "ffn_activation": activation,
        "hidden_act": "relu",
    }
    for key, values in (("ffn_thresholds", thresholds.own), ("ffn_up_thresholds", thresholds.up)) if thresholds else ():
        config.pop(key, None)
        if any(values):
            config[key] = list(values)
    _write_rope(config, checkpoint.spec)
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    return config


def _write_rope(config: dict[str, Any], spec: ModelSpec) -> None:
    """Put a scaling of the hub's form into `rope_parameters`, with all that transformers 5 wants to find there.

    AutoTokenizer reads config.json without the folder's code, and fails on `rope_scaling` in it.
    """
    if not config.get("rope_scaling") and "original_max_position_embeddings" not in config:
        return
    for key in ("rope_scaling", "rope_theta", "original_max_position_embeddings"):
        config.pop(key, None)
    scaling: dict[str, Any] = {"rope_type": "default", **(spec.rope_scaling or {}), "rope_theta": spec.rope_theta}
    scaling.pop("type", None)
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("original_max_position_embeddings", spec.context)
    config |= {"rope_parameters": scaling, "head_dim": spec.head_dim}


def write_companions(checkpoint: Checkpoint, config: dict[str, Any], folder: Path) -> None:
    """Write the files of the sparse checkpoint other than its weights."""
    write_json(folder / "config.json", config)
    shutil.copyfile(Path(__file__).with_name(f"{_MODELING}.py"), folder / f"{_MODELING}.py")
    copy_tokenizer(checkpoint, folder)


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy tokenizer, chat template and generation defaults, as far as there are any."""
    for name in _COMPANIONS:
        if (checkpoint.folder / name).is_file():
            shutil.copyfile(checkpoint.folder / name, folder / name)
