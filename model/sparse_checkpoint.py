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
from .families.family import Family
from .files.writer import PlannedTensor
from .spec import ModelSpec
from .tensor_names import UP_SCALE, Place, hf_name, hf_whole, shape_of

_MODELING = "modeling_turbosparse"
_COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "tekken.json",
)  # fmt: skip


def plan_of(checkpoint: Checkpoint, dtype: str | None = None, *, up_scaled: bool | None = None) -> list[PlannedTensor]:
    """The tensors of a checkpoint like ``checkpoint``, in ``dtype`` if given; each by the name of its place.

    Experts are one tensor each, whatever layout they came in. Scales of ups are float32.

    Args:
        up_scaled: whether it has those; None: as ``checkpoint``.
    """
    spec = checkpoint.spec
    scaled = spec.up_scaled if up_scaled is None else up_scaled
    places = [place for place in checkpoint.places if scaled or place.role != UP_SCALE]
    places += [Place(UP_SCALE, layer) for layer in range(spec.layers) if scaled and not spec.up_scaled]

    def planned(place: Place) -> PlannedTensor:
        if place.role == UP_SCALE:
            return PlannedTensor(name=hf_name(spec, place), dtype="F32", shape=shape_of(spec, place))
        info = checkpoint.info(place)
        return PlannedTensor(
            name=hf_name(spec, place), dtype=dtype or info.dtype, shape=info.shape, whole=hf_whole(spec, place)
        )

    return [planned(place) for place in places]


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
    checkpoint: Checkpoint, activation: str, dtype: str | None = None, thresholds: Thresholds | None = None,
    *, up_scaled: bool | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The config.json of the sparse model that ``checkpoint`` becomes.

    Args:
        dtype: of the weights, where it is another one.
        thresholds: None keeps those of ``checkpoint``.
        up_scaled: as `ModelSpec.up_scaled`; None: as ``checkpoint``.
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
        family.key("hidden_act"): "relu",
    }
    if family.since != Family.since:
        config["transformers_since"] = family.since  # heeded by the class that is saved
    for key, values in (("ffn_thresholds", thresholds.own), ("ffn_up_thresholds", thresholds.up)) if thresholds else ():
        config.pop(key, None)
        if any(values):
            config[key] = list(values)
    if up_scaled is not None:
        config.pop("ffn_up_scaled", None)
        config |= {"ffn_up_scaled": True} if up_scaled else {}
    _write_rope(config, checkpoint.spec)
    if dtype:
        config.pop("torch_dtype", None)
        config["dtype"] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[dtype]
    return config


def _write_rope(config: dict[str, Any], spec: ModelSpec) -> None:
    """Put a scaling of the hub's form into `rope_parameters`, with all that transformers 5 wants to find there.

    AutoTokenizer reads config.json without the folder's code, and fails on `rope_scaling` in it.
    """
    if FAMILIES[spec.family].local_rope_theta is not None:
        _write_local_rope(config, spec)
        return
    if not config.get("rope_scaling") and "original_max_position_embeddings" not in config:
        return
    for key in ("rope_scaling", "rope_theta", "original_max_position_embeddings"):
        if key == "rope_theta" or key not in FAMILIES[spec.family].defaults:
            config.pop(key, None)
    scaling: dict[str, Any] = {"rope_type": "default", **(spec.rope_scaling or {}), "rope_theta": spec.rope_theta}
    scaling.pop("type", None)
    if scaling["rope_type"] == "yarn":
        scaling.setdefault("original_max_position_embeddings", spec.context)
    config["rope_parameters"] = scaling
    if "head_dim" in FAMILIES[spec.family].defaults:
        config["head_dim"] = spec.head_dim


def _write_local_rope(config: dict[str, Any], spec: ModelSpec) -> None:
    """`rope_parameters` of a model whose layers with a window have a rope of their own."""
    for key in ("rope_scaling", "rope_theta", "rope_local_base_freq"):
        config.pop(key, None)
    full: dict[str, Any] = {"rope_type": "default", **(spec.rope_scaling or {}), "rope_theta": spec.rope_theta}
    full.pop("type", None)
    local = {"rope_type": "default", "rope_theta": spec.local_rope_theta}
    config["rope_parameters"] = {"full_attention": full, "sliding_attention": local}


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
