"""Whole models for full recovery: loaded from checkpoints, and written back as checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..common.files import write_json
from . import modeling_turbosparse
from .checkpoint import Checkpoint
from .families import FAMILIES
from .files.dtypes import from_float32
from .files.found_files import gguf_source
from .files.writer import CheckpointWriter
from .layers import read_tensor
from .sparse_checkpoint import Thresholds, copy_tokenizer, plan_of, sparse_config, write_companions
from .spec import ModelSpec
from .tensor_names import Place, shape_of


def sparse_model(checkpoint: Checkpoint) -> Any:
    """The sparse model of ``checkpoint`` in float32, for training."""
    prefix = FAMILIES[checkpoint.spec.family].sparse_prefix
    fields = sparse_config(checkpoint, checkpoint.spec.activation)
    classes = [getattr(modeling_turbosparse, prefix + end) for end in ("Config", "ForCausalLM")]
    return _loaded(checkpoint, classes, fields, torch.float32)


def dense_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The dense model of ``checkpoint``, frozen."""
    family = FAMILIES[checkpoint.spec.family]
    classes = [family.transformers_class(end) for end in ("Config", "ForCausalLM")]
    return _loaded(checkpoint, classes, checkpoint.config, dtype).eval().requires_grad_(False)


def _loaded(checkpoint: Checkpoint, classes: list[Any], fields: Mapping[str, Any], dtype: torch.dtype) -> Any:
    config_class, model_class = classes
    config = config_class.from_dict({key: fields[key] for key in fields if key not in ("model_type", "auto_map")})
    if checkpoint.spec.attention_softcap:
        config._attn_implementation = "eager"  # transformers' sdpa leaves the cap out
    if gguf_source(checkpoint.folder):
        return model_class.from_pretrained(None, config=config, dtype=dtype, state_dict=_state(checkpoint, dtype))
    return model_class.from_pretrained(checkpoint.folder, config=config, dtype=dtype, use_safetensors=True)


def _state(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights by transformers' names, where the files have others."""
    family = FAMILIES[checkpoint.spec.family]
    parts: dict[tuple[str, int], list[torch.Tensor]] = {}
    for place in checkpoint.places:
        template, count = family.whole(place.role) or family.name_in_memory(place.role), 0
        if place.expert is not None:
            template = next(name for name, roles in family.stacked.items() if place.role in roles)
            count = checkpoint.spec.experts
        tensor = read_tensor(checkpoint, place).to(dtype)
        parts.setdefault((template.format(L=place.layer), count), []).append(tensor)
    return {
        name: torch.cat(found).reshape(count, -1, found[0].shape[-1]) if count else torch.cat(found)
        for (name, count), found in parts.items()
    }


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
    plan = plan_of(like, dtype)
    with CheckpointWriter(folder, plan, max_shard_bytes) as writer:
        for place, tensor in zip(like.places, plan, strict=True):
            weight = weight_at(state, like.spec, place)
            writer.write(tensor.name, from_float32(weight.float().cpu().contiguous().numpy(), tensor.dtype))
        if like.spec.sparse:
            write_companions(like, sparse_config(like, like.spec.activation, dtype, thresholds), folder)
        else:
            write_json(folder / "config.json", like.config)
            copy_tokenizer(like, folder)
        writer.flush()


def weight_at(state: Mapping[str, torch.Tensor], spec: ModelSpec, place: Place) -> torch.Tensor:
    """The weight at ``place`` in transformers' state, where all experts of a layer are one tensor: a view."""
    family = FAMILIES[spec.family]
    if place.expert is not None:
        template, roles = next(each for each in family.stacked.items() if place.role in each[1])
        expert = state[template.format(L=place.layer)][place.expert].detach()
        return expert.chunk(len(roles))[roles.index(place.role)]
    whole = family.whole(place.role)
    if whole is not None:
        rows = [shape_of(spec, Place(role, place.layer))[0] for role in family.fused[whole]]
        start = sum(rows[: family.fused[whole].index(place.role)])
        return state[whole.format(L=place.layer)].detach()[start : start + shape_of(spec, place)[0]]
    return state[family.name_in_memory(place.role).format(L=place.layer)].detach()
