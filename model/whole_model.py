"""Whole models for full recovery: loaded from checkpoints, and written back as checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import modeling_turbosparse
from .checkpoint import Checkpoint
from .families import FAMILIES
from .families.family import Family
from .files.dtypes import from_float32
from .files.writer import CheckpointWriter, plan_like
from .sparse_checkpoint import Thresholds, sparse_config, write_companions
from .tensor_names import Place


def sparse_model(checkpoint: Checkpoint) -> Any:
    """The sparse model of ``checkpoint`` in float32, for training."""
    prefix = FAMILIES[checkpoint.spec.family].sparse_prefix
    config_class, model_class = (getattr(modeling_turbosparse, prefix + end) for end in ("Config", "ForCausalLM"))
    fields = sparse_config(checkpoint, checkpoint.spec.activation)
    config = config_class.from_dict({key: fields[key] for key in fields if key not in ("model_type", "auto_map")})
    return model_class.from_pretrained(checkpoint.folder, config=config, dtype=torch.float32, use_safetensors=True)


def dense_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The dense model of ``checkpoint``, frozen."""
    family = FAMILIES[checkpoint.spec.family]
    config_class, model_class = map(family.transformers_class, ("Config", "ForCausalLM"))
    config = config_class.from_dict({key: value for key, value in checkpoint.config.items() if key != "auto_map"})
    model = model_class.from_pretrained(checkpoint.folder, config=config, dtype=dtype, use_safetensors=True)
    return model.eval().requires_grad_(False)


def write_model(
    state: Mapping[str, torch.Tensor], like: Checkpoint, folder: Path, dtype: str | None, max_shard_bytes: int,
    thresholds: Thresholds | None = None,
) -> None:  # fmt: skip
    """Write the weights in ``state`` as a checkpoint with the layout and configuration of ``like``.

    Args:
        state: the state dict of transformers' model; tensors that are not in ``like`` (predictors) are left out.
        dtype: `F32`, `F16` or `BF16`; None keeps the dtype of each tensor.
        thresholds: None keeps those of ``like``.
    """
    infos = [like.info(place) for place in like.places]
    plan = plan_like(infos, dtype)
    with CheckpointWriter(folder, plan, max_shard_bytes) as writer:
        for place, tensor in zip(like.places, plan, strict=True):
            weight = weight_at(state, FAMILIES[like.spec.family], place)
            writer.write(tensor.name, from_float32(weight.float().cpu().contiguous().numpy(), tensor.dtype))
        write_companions(like, sparse_config(like, like.spec.activation, dtype, thresholds), folder)
        writer.flush()


def weight_at(state: Mapping[str, torch.Tensor], family: Family, place: Place) -> torch.Tensor:
    """The weight at ``place`` in transformers' state, where all experts of a layer are one tensor: a view."""
    if place.expert is None:
        return state[family.name_in_memory(place.role).format(L=place.layer)].detach()
    template, roles = next(each for each in family.stacked.items() if place.role in each[1])
    expert = state[template.format(L=place.layer)][place.expert].detach()
    return expert.chunk(len(roles))[roles.index(place.role)]
