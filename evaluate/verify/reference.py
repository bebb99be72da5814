"""transformers' own model of a checkpoint, to compare with: it reads config.json and the tensors by itself.

Then the file's weights take the place of its own, so that quantization is not part of what is compared. A mistake of
tsconvert's reader shows: as a parameter that has other values than were exported, as one that no tensor of the file has
a place for, or in the logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from ...common.errors import TsconvertError, reason
from ...model import modeling_turbosparse
from ...model.checkpoint import Checkpoint
from ...model.families import FAMILIES
from ...model.tensor_names import Place, layer_places, model_places
from ...model.whole_model import weight_at
from .expected_tensors import Floats

Read = Callable[[Place], Floats]


class Reference:
    """transformers' model of a checkpoint, with a file's weights.

    Args:
        checkpoint: what the exporter read. Of its own code, if there is any, nothing is run.
        decoded: the file's weights, in Hugging Face's layout.
        whole: load all of it as transformers does and compare its tensors with the exporter's; or else build it without
            weights, and fill each layer when its turn comes.
        thresholds: the file's engine has them; or else those of the FFNs count as 0.

    Raises:
        TsconvertError: transformers does not load it, or reads other tensors than were exported.
    """

    def __init__(self, checkpoint: Checkpoint, decoded: Read, *, whole: bool, thresholds: bool = True) -> None:
        self._spec, self._decoded = checkpoint.spec, decoded
        with _silent():
            try:
                self.model = (_load if whole else _build)(checkpoint)
            except Exception as error:  # its own kinds for each way in which a folder can be wrong
                raise TsconvertError(f"transformers does not load {checkpoint.folder}: {reason(error)}") from error
        self.model.eval().requires_grad_(False)
        if not thresholds:
            for module in self._ffns():
                module.up_scale = None
            self._spec = replace(self._spec, up_scaled=False)
            self.let_all_fire()
        if whole:
            self._compare(checkpoint.array)
            self._fill(self.model, list(model_places(self._spec)))
        else:
            self._fill_in_turn()

    def let_all_fire(self) -> None:
        """Have no thresholds from now on."""
        for module in self._ffns():
            module.threshold, module.up_threshold = 0.0, 0.0

    def _ffns(self) -> Iterator[Any]:
        kinds = modeling_turbosparse.SparseFFN, modeling_turbosparse.SparseExperts
        return (module for module in self.model.modules() if isinstance(module, kinds))

    @property
    def window(self) -> int | None:
        """The sliding window of config.json as transformers has it, whether the model heeds it or not."""
        window = getattr(self.model.config, "sliding_window", None)
        return window if isinstance(window, int) else None

    @torch.no_grad()
    def logits(self, rows_NS: torch.Tensor, positions_NS: torch.Tensor, window: int | None = None) -> Floats:
        """Logits [N, S, V] of token ids at positions, and with another sliding window than the config's."""
        config = self.model.config
        before = config.sliding_window if window else None
        try:
            if window:
                config.sliding_window = window
            # with a mask given it does not take a leap of positions for the start of another text
            ones_NS = torch.ones_like(rows_NS)
            out = self.model(input_ids=rows_NS, position_ids=positions_NS, attention_mask=ones_NS, use_cache=False)
        finally:
            if window:
                config.sliding_window = before
        found: Floats = out.logits.float().numpy()
        return found

    def _compare(self, exported: Read) -> None:
        state = self.model.state_dict()
        for place in model_places(self._spec):
            if not np.array_equal(weight_at(state, self._spec, place).numpy(), exported(place)):
                where = "" if place.layer is None else f" of layer {place.layer}"
                raise TsconvertError(f"transformers reads another {place.role}{where} from the model than was exported")

    def _fill(self, module: Any, places: list[Place], prefix: str = "") -> None:
        """Put the file's weights into a module; its parameters are called as the model's, without ``prefix``."""
        state = module.state_dict(prefix=prefix, keep_vars=True)
        filled = set()
        for place in places:
            weight = weight_at(state, self._spec, place)
            weight.copy_(torch.from_numpy(self._decoded(place)))
            filled.add(weight.untyped_storage().data_ptr())
        for name, weight in state.items():
            if weight.untyped_storage().data_ptr() not in filled and not (name.endswith(".bias") and not weight.any()):
                raise TsconvertError(f"transformers' model has a parameter that the file has nothing for: {name}")

    def _fill_in_turn(self) -> None:
        spec, family = self._spec, FAMILIES[self._spec.family]
        units = [[Place("token_embd")], [Place("output_norm")], [Place("output")]]
        for places in [*units, *(layer_places(spec, layer) for layer in range(spec.layers))]:
            name = family.name_in_memory(places[0].role)
            layer = places[0].layer
            path = name.rpartition(".")[0] if layer is None else f"{name.partition('{L}')[0]}{layer}"
            module = self.model.get_submodule(path)
            module.register_forward_pre_hook(self._filler(places, f"{path}."))
            module.register_forward_hook(_emptied)

    def _filler(self, places: list[Place], prefix: str) -> Callable[[Any, Any], None]:
        def fill(module: Any, _: Any) -> None:
            for name, weight in list(module.named_parameters()):
                set_module_tensor_to_device(module, name, "cpu", value=torch.zeros(weight.shape))
            self._fill(module, places, prefix)

        return fill


def _emptied(module: Any, *_: Any) -> None:
    for name, _ in list(module.named_parameters()):
        set_module_tensor_to_device(module, name, "meta")


def _load(checkpoint: Checkpoint) -> Any:
    config, model_class = _config(checkpoint)
    return model_class.from_pretrained(
        checkpoint.folder, config=config, dtype=torch.float32, use_safetensors=True, **_OPTIONS
    )


def _build(checkpoint: Checkpoint) -> Any:
    config, model_class = _config(checkpoint)
    config.dtype = torch.float32
    with init_empty_weights(include_buffers=False):
        if model_class is AutoModelForCausalLM:
            return model_class.from_config(config, attn_implementation="eager", trust_remote_code=False)
        config._attn_implementation = "eager"
        return model_class(config)


_OPTIONS: dict[str, Any] = {"attn_implementation": "eager", "local_files_only": True, "trust_remote_code": False}


def _config(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """The config as transformers reads it, and the class of the model: the package's own where it is a sparse one."""
    folder = checkpoint.folder
    model_class: Any = AutoModelForCausalLM
    if checkpoint.spec.sparse:
        prefix = FAMILIES[checkpoint.spec.family].sparse_prefix
        model_class = getattr(modeling_turbosparse, f"{prefix}ForCausalLM")
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if "quantization_config" not in checkpoint.config and hasattr(config, "quantization_config"):
        del config.quantization_config  # left over: the weights are not quantized
    return config, model_class


@contextmanager
def _silent() -> Iterator[None]:
    """transformers without bars, and without warnings of a model type that is not its own."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
