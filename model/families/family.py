"""The description of a model family."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family: its names in transformers, in config.json and in checkpoints."""

    name: str
    """`model_type` of its dense models, and the name of its module in transformers."""
    class_prefix: str
    """The prefix of transformers' class names: `Mixtral` as in `MixtralConfig`."""
    sparse_aliases: tuple[str, ...] = ()
    """`model_type` of sparse models that others released, beside ``sparse_type``."""
    tensors: Mapping[str, str]
    """Role -> the tensor's name in a checkpoint; {L} stands for the layer, {E} for the expert."""
    renamed: Mapping[str, str]
    """Role -> the tensor's name in transformers' memory, where it is another one."""
    stacked: Mapping[str, tuple[str, ...]]
    """Name of a tensor that holds all experts of a layer -> the roles in it, one below the other in each expert.
    transformers holds experts so in memory, and some checkpoints do."""
    defaults: Mapping[str, float]
    """Key of config.json -> its value where the key is left out."""
    sliding_window: bool
    """The config's `sliding_window` limits attention."""

    @property
    def experts(self) -> bool:
        """The FFN is a mixture of experts."""
        return "router" in self.tensors

    @property
    def sparse_type(self) -> str:
        """`model_type` of the sparse models that tsconvert writes."""
        return f"turbosparse_{self.name}"

    @property
    def sparse_prefix(self) -> str:
        """The prefix of its class names in modeling_turbosparse.py."""
        return f"TurboSparse{self.class_prefix}"

    def transformers_class(self, suffix: str) -> Any:
        """transformers' class of this family whose name ends in ``suffix`` (`Config`, `DecoderLayer`, ...)."""
        module = import_module(f"transformers.models.{self.name}.modeling_{self.name}")
        return getattr(module, self.class_prefix + suffix)

    def name_in_memory(self, role: str) -> str:
        """The name, as a template, that transformers has for the tensor of a role that is no expert's."""
        return self.renamed.get(role) or self.tensors[role]
