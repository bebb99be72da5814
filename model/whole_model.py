"""Whole models for full recovery: loaded from checkpoints, and their weights written back as one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM

from . import modeling_turbosparse as sparse
from . import tensor_names
from .checkpoint import Checkpoint, from_float32
from .sparse_checkpoint import sparse_config, write_companions
from .tensor_names import Place, hf_name
from .writer import CheckpointWriter, plan_like

_DENSE = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "mixtral": MixtralForCausalLM}
_SPARSE: dict[str, tuple[Any, Any]] = {
    "llama": (sparse.TurboSparseLlamaConfig, sparse.TurboSparseLlamaForCausalLM),
    "mistral": (sparse.TurboSparseMistralConfig, sparse.TurboSparseMistralForCausalLM),
    "mixtral": (sparse.TurboSparseMixtralConfig, sparse.TurboSparseMixtralForCausalLM),
}


def sparse_model(checkpoint: Checkpoint) -> Any:
    """The sparse model of ``checkpoint`` in float32, to be trained."""
    config_class, model_class = _SPARSE[checkpoint.spec.family]
    fields = sparse_config(checkpoint, checkpoint.spec.activation)
    config = config_class.from_dict({key: fields[key] for key in fields if key not in ("model_type", "auto_map")})
    return model_class.from_pretrained(checkpoint.folder, config=config, dtype=torch.float32, use_safetensors=True)


def dense_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The dense model of ``checkpoint``, not to be trained."""
    model = _DENSE[checkpoint.spec.family].from_pretrained(checkpoint.folder, dtype=dtype, use_safetensors=True)
    return model.eval().requires_grad_(False)


def write_model(
    state: Mapping[str, torch.Tensor], like: Checkpoint, folder: Path, dtype: str | None, max_shard_bytes: int
) -> None:
    """A checkpoint of the weights in ``state``, laid out and configured as ``like``.

    Args:
        state: of transformers' model; what is no weight of a checkpoint (predictors) is left out.
        dtype: `F32`, `F16` or `BF16`; None keeps each tensor's.
    """
    infos = [like.info(place) for place in like.places]
    plan = plan_like(infos, dtype)
    with CheckpointWriter(folder, plan, max_shard_bytes) as writer:
        for place, tensor in zip(like.places, plan, strict=True):
            weight = _weight(state, place, like.spec.neurons)
            writer.write(tensor.name, from_float32(weight.float().cpu().contiguous().numpy(), tensor.dtype))
        write_companions(like, sparse_config(like, like.spec.activation, dtype), folder)
        writer.flush()


def _weight(state: Mapping[str, torch.Tensor], place: Place, neurons: int) -> torch.Tensor:
    """The weight at ``place`` in transformers' state: experts are fused there."""
    if place.role == "router":
        return state[tensor_names.FUSED_ROUTER.format(L=place.layer)].detach()
    if place.expert is None:
        return state[hf_name(place)].detach()
    if place.role == "ffn_down":
        return state[tensor_names.FUSED_DOWN.format(L=place.layer)][place.expert].detach()
    gate_up = state[tensor_names.FUSED_GATE_UP.format(L=place.layer)][place.expert].detach()
    return gate_up[:neurons] if place.role == "ffn_gate" else gate_up[neurons:]
