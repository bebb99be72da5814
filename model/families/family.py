"""The description of a model family: data alone, in fields that this page lists.

A family that needs nothing but these fields is one file. What it cannot say (a state-space layer, an attention sink) is
a feature: that is implemented once in layers, exporter and runner, and then becomes a field of ModelSpec.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from typing import Any

Config = Mapping[str, Any]

LAYER = "model.layers.{L}."
HARMLESS = {
    # the library's own
    "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type", "output_hidden_states",
    "return_dict", "use_cache", "is_encoder_decoder", "chunk_size_feed_forward", "output_router_logits",
    # training's
    "initializer_range", "attention_dropout", "residual_dropout", "resid_pdrop", "embd_pdrop", "router_aux_loss_coef",
    "router_jitter_noise",
    # a slicing of products that changes nothing, and tokens' ids
    "pretraining_tp", "pad_token_id", "bos_token_id", "eos_token_id",
}  # fmt: skip
"""Keys of transformers' config classes that change nothing of what a model computes."""


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """llama.cpp's architecture for a family (its source: src/models/NAME.cpp, conversion/)."""

    architecture: str
    """`general.architecture`."""
    pairs: str = "adjacent"
    """The rows of a head that its rope turns together: `adjacent` ones, or those `half` a head apart."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Role -> its name there, where it is another than GGUF_NAMES says."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> the roles whose rows it holds, one below the other."""
    native: tuple[str, ...] = ()
    """Features (fields of ModelSpec) that it computes itself; other scales are folded into weights."""
    fixed: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    """Of a spec: fields of ModelSpec that it has built in, whatever a file's keys say."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: its names in transformers, in config.json, in checkpoints and in llama.cpp."""

    name: str
    """`model_type` of its dense models."""
    class_prefix: str
    """The prefix of transformers' class names: `Mixtral` as in `MixtralDecoderLayer`."""
    module: str = ""
    """The module with these classes, where it is not called ``name``."""
    config_prefix: str = ""
    """The prefix of its config class's name, where it is another one."""
    since: str = "5.0.0"
    """The first transformers that computes these models as tsconvert does."""
    sparse_aliases: tuple[str, ...] = ()
    """`model_type` of sparse models that others released, beside ``sparse_type``."""
    tensors: Mapping[str, str]
    """Role -> the tensor's name in a checkpoint; {L} stands for the layer, {E} for the expert. The norms that are here
    are the norms that the family has."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a tensor -> the roles whose rows it holds, one below the other, in checkpoints and in memory."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Role -> the tensor's name in transformers' memory, where it is another one."""
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a tensor that holds all experts of a layer -> the roles in it, one below the other in each expert.
    transformers holds experts so in memory, and some checkpoints do."""
    defaults: Config
    """Key of config.json -> its value where the key is left out: transformers' config class's, for every key that is
    read. `sliding_window` is among them where it limits attention, `partial_rotary_factor` where it counts."""
    nullable: tuple[str, ...] = ()
    """Keys of ``defaults`` that may be null: no window, as many KV heads as heads, the width over the heads."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Llama's name of a key -> this family's."""
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Key of ``defaults`` -> the roles that have a bias where it is true."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Key of config.json that changes arithmetic and is not covered -> its values that change nothing."""
    activations: Mapping[str, str] = field(default_factory=lambda: {"silu": "swiglu", "swish": "swiglu"})
    """`hidden_act` -> the FFN's activation, by ModelSpec's name."""
    rope_types: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    rope_aliases: Mapping[str, str] = field(default_factory=dict)
    """Old names of ``rope_types``."""
    local_rope_theta: float | None = None
    """The default base of the rope in layers with a window, where the rope differs by layer type."""
    temperature: bool = False
    """`rope_parameters` may have `llama_4_scaling_beta`: queries grow with the position."""
    adjacent_pairs: bool = False
    """Rope turns adjacent rows of a head in the checkpoint, not rows half a head apart."""
    windows: Callable[[Config], list[bool]] | None = None
    """Of a config without `layer_types`: which layers have the window, where not all have."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Field of ModelSpec -> its value, or a function of config.json with the defaults filled in."""
    gguf: Gguf
    tiny: Config = field(default_factory=dict)
    """Keys of a small model in which everything that the family can have is there, for tests."""

    @property
    def covered(self) -> bool:
        """The installed transformers is new enough."""
        return _numbers(version("transformers")) >= _numbers(self.since)

    @property
    def experts(self) -> bool:
        """The FFN is a mixture of experts."""
        return "router" in self.tensors

    @property
    def sliding_window(self) -> bool:
        """The config's `sliding_window` limits attention."""
        return "sliding_window" in self.defaults

    @property
    def norms(self) -> str:
        """As ModelSpec.norms."""
        if "attn_post_norm" not in self.tensors:
            return "pre"
        return "both" if "attn_norm" in self.tensors else "post"

    @property
    def norm_offset(self) -> float:
        """As ModelSpec.norm_offset."""
        return float(self.features.get("norm_offset", 0.0))

    @property
    def sparse_type(self) -> str:
        """`model_type` of the sparse models that tsconvert writes."""
        return f"turbosparse_{self.name}"

    @property
    def sparse_prefix(self) -> str:
        """The prefix of its class names in modeling_turbosparse.py."""
        return f"TurboSparse{self.config_prefix or self.class_prefix}"

    def key(self, name: str) -> str:
        """This family's name of a key of Llama's config."""
        return self.keys.get(name, name)

    def transformers_class(self, suffix: str) -> Any:
        """transformers' class of this family whose name ends in ``suffix`` (`Config`, `DecoderLayer`, ...)."""
        if suffix == "Config":
            return import_module("transformers").CONFIG_MAPPING[self.name]
        module = self.module or self.name
        return getattr(import_module(f"transformers.models.{module}.modeling_{module}"), self.class_prefix + suffix)

    def name_of(self, role: str) -> str:
        """The name, as a template, of the tensor of a role in a checkpoint."""
        if role == "ffn_up_scale":
            return self._up_scale(self.tensors["router" if self.experts else "ffn_down"])
        if role.endswith("_bias"):
            return self.tensors[role.removesuffix("_bias")].removesuffix("weight") + "bias"
        return self.tensors[role]

    def name_in_memory(self, role: str) -> str:
        """The name, as a template, that transformers has for the tensor of a role that is no expert's."""
        if role == "ffn_up_scale":
            return self._up_scale(self.name_in_memory("router" if self.experts else "ffn_down"))
        return self.renamed.get(role) or self.name_of(role)

    def _up_scale(self, beside: str) -> str:
        """The name of the ups' scales, as modeling_turbosparse.py has them in an FFN with a matrix ``beside``."""
        ffn = beside.removesuffix(".weight").rpartition(".")[0]
        return f"{ffn}.experts.up_scale" if self.experts else f"{ffn}.up_scale"

    def whole(self, role: str) -> str | None:
        """The name, as a template, of the tensor that holds the rows of a role among others."""
        return next((name for name, roles in self.fused.items() if role in roles), None)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", release)[:3])
