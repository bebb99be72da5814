"""Local recovery: each sparse layer is trained, alone, to give what the dense layer gives.

Under torchrun every process draws the same batches from the tokens of all and works on those that are its own; the
gradients are summed, so the weights stay equal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from ...common import processes
from ...common.errors import TsconvertError
from ...common.progress import at
from ...common.schedule import schedule
from ...model.layers import Layer
from ...model.modeling_turbosparse import factors
from ..config.local import LocalRecovery
from ..layer_data import LayerData, blocks
from ..learning_rate import LOCAL_SHARE, learning_rate
from ..masked.layer_predictors import JointPredictors
from ..penalty import FFNThresholds, SparsityPenalty
from ..report import LayerResult

# Shape suffixes: T tokens, D model width, F neurons, C attention context.
_LOOK_EVERY = 8  # tokens of a batch, for the threshold


@dataclass(frozen=True, kw_only=True)
class ExtraTokens:
    """Tokens that the router did not give an expert, but that it is to learn from: starved_experts.py."""

    expert: int
    x_TD: torch.Tensor
    """Normed inputs."""
    target_TD: torch.Tensor
    """What the dense expert makes of them."""


def recover_layer(
    layer: Layer,
    data: LayerData,
    how: LocalRecovery,
    generator: torch.Generator,
    expert_tokens: list[int],
    further: Sequence[ExtraTokens] = (),
    predictors: JointPredictors | None = None,
) -> LayerResult:
    """Train ``layer``'s FFN (and attention output) in place.

    The loss is each token's squared error over its squared norm: the norm of the next layer divides the token's scale
    away, and without the division the few tokens with huge hidden states are all that counts.

    Raises:
        TsconvertError: the loss is no number.
    """
    before, _ = _judge(layer, data)
    parameters = _trainable(layer, how)
    peak = how.learning_rate or learning_rate(LOCAL_SHARE, parameters)
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    goal = how.target_sparsity
    follows = goal and how.silenced_by == "threshold"
    thresholds = FFNThresholds(layer, layer.activation, goal, how.ups) if goal and follows else None
    penalty = SparsityPenalty(None if thresholds else goal, counts=how.silenced_by == "count")
    # processes hold different further tokens: drawing those must not move the generator that all share
    further_generator = torch.Generator().manual_seed(generator.initial_seed() + 1)
    masked_from = how.steps - round(how.steps * predictors.masked_steps) if predictors else how.steps
    losses: list[float] = []
    for step in range(how.steps):
        if predictors is not None and step == masked_from:
            predictors.begin(layer, data, int(torch.randint(2**31, (), generator=generator)))
        optimizer.param_groups[0]["lr"] = peak * schedule(step, how.steps)
        optimizer.zero_grad(set_to_none=True)
        batch = torch.randint(data.all_train_tokens, (how.batch_tokens,), generator=generator) - data.first_token
        if thresholds is not None:
            thresholds.follow(step, step / how.steps, *_compared(layer, data, batch, how))
        loss, fired = _backward(layer, data, batch, penalty, how, predictors if step >= masked_from else None)
        for material in further:
            _further_backward(layer, material, data, how, further_generator)
        if not math.isfinite(loss):
            raise TsconvertError(f"layer {layer.index}: the loss is {loss} at step {step}; lower the learning rate")
        losses.append(loss)
        at(f"step {step + 1} of {how.steps}")
        for parameter in parameters:
            parameter.grad = processes.sum_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        penalty.steer(step / how.steps, fired)
    layer.module.requires_grad_(False)
    after, density = _judge(layer, data)
    return LayerResult(
        error_before=before, error_after=after, density=density, expert_tokens=expert_tokens,
        threshold=layer.threshold, up_threshold=layer.up_threshold, curve=stretches(losses),
    )  # fmt: skip


def stretches(values: list[float], most: int = 24) -> list[float]:
    """The means of at most ``most`` equal stretches, to four digits."""
    ends = [round(len(values) * i / most) for i in range(most + 1)] if len(values) > most else range(len(values) + 1)
    return [float(f"{sum(values[a:b]) / (b - a):.4g}") for a, b in pairwise(ends)]


def judge_layer(layer: Layer, data: LayerData, expert_tokens: list[int]) -> LayerResult:
    """What `recover_layer` reports, for a layer that stays as it is."""
    error, density = _judge(layer, data)
    return LayerResult(
        error_before=error, error_after=error, density=density, expert_tokens=expert_tokens, threshold=layer.threshold,
        up_threshold=layer.up_threshold,
    )  # fmt: skip


def _trainable(layer: Layer, how: LocalRecovery) -> list[nn.Parameter]:
    mlp = layer.module.mlp
    ffn = list(mlp.experts.parameters()) if layer.experts else list(mlp.parameters())
    attention = [layer.module.self_attn.o_proj.weight] if how.train_attention else []
    parameters = [*ffn, *attention]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


@torch.no_grad()
def _compared(
    layer: Layer, data: LayerData, batch: torch.Tensor, how: LocalRecovery
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all FFNs and some of this process's tokens of ``batch``, what the thresholds are held against."""
    own = batch[(batch >= 0) & (batch < data.train_tokens)][::_LOOK_EVERY]
    with torch.autocast(layer.device.type, torch.bfloat16, enabled=bool(how.autocast)):
        x_TD = layer.norm(data.residual(layer, own).float())
        return compared(layer, x_TD)


def compared(layer: Layer, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `FFNThresholds.follow` is given, of all FFNs one below the other, for the layer's normed inputs."""
    factor_TF, up_size_TF = [], []
    for expert, (token, _) in enumerate(layer.route(x_TD)):
        gate_TF, up_TF = layer.gate_up(x_TD[token], expert)
        factor_TF.append(factors(gate_TF, up_TF, layer.activation))
        up_size_TF.append(layer.up_sizes(up_TF, expert))
    return torch.cat(factor_TF), torch.cat(up_size_TF)


def _backward(
    layer: Layer,
    data: LayerData,
    batch: torch.Tensor,
    penalty: SparsityPenalty,
    how: LocalRecovery,
    predictors: JointPredictors | None = None,
) -> tuple[float, float]:
    """Fill the gradients for those tokens of ``batch`` that are this process's; the loss and density over all."""
    device, whole = layer.device, len(batch)
    batch = batch[(batch >= 0) & (batch < data.train_tokens)]
    x_TD, context_TC, target_TD = (part[batch].to(device) for part in (data.x_TD, data.context_TC, data.target_TD))
    with torch.autocast(device.type, torch.bfloat16, enabled=bool(how.autocast)):
        residual_TD = layer.attended(x_TD, context_TC)
        out_TD = residual_TD
        price = torch.zeros((), device=device)
        fired, seen = 0.0, 0
        normed_TD = layer.norm(residual_TD)
        mask = predictors.mask if predictors else None
        for expert, (token, h_TF, part_TD) in enumerate(layer.ffn_parts(normed_TD, mask)):
            out_TD = out_TD.index_add(0, token, part_TD.float()) if layer.experts else out_TD + part_TD.float()
            if penalty.goal is not None:
                down_F = layer.ffn_weights(expert)[2].detach().norm(dim=0)
                price = price + penalty.price(h_TF.float().abs() * down_F).sum() / whole
                fired += float((h_TF != 0).sum())
                seen += h_TF.numel()
    error = relative_error(out_TD, target_TD, layer.reader_D).sum() / whole
    sums = processes.sums(error.item(), price.item(), fired, seen)
    if len(batch):
        (error if penalty.goal is None else error + penalty.factor(sums[1]) * price).backward()
    if predictors is not None:
        for expert, (token, _) in enumerate(layer.route(normed_TD.detach())):
            predictors.learn(expert, normed_TD.detach()[token])
    return sums[0], sums[2] / max(1.0, sums[3])


def _further_backward(
    layer: Layer, material: ExtraTokens, data: LayerData, how: LocalRecovery, generator: torch.Generator
) -> None:
    """Add the gradient of further tokens, each as often drawn as one that the router gave."""
    if not len(material.x_TD):
        return
    share = len(material.x_TD) * processes.world() / data.all_train_tokens
    chosen = torch.randint(len(material.x_TD), (math.ceil(how.batch_tokens * share),), generator=generator)
    chosen = chosen[processes.share(len(chosen))]
    with torch.autocast(layer.device.type, torch.bfloat16, enabled=bool(how.autocast)):
        h_TF = layer.activations(material.x_TD[chosen], material.expert)
        out_TD = nn.functional.linear(h_TF, layer.ffn_weights(material.expert)[2]).float()
    (relative_error(out_TD, material.target_TD[chosen]).sum() / how.batch_tokens).backward()


def relative_error(out_TD: torch.Tensor, target_TD: torch.Tensor, reader_D: torch.Tensor | None = None) -> torch.Tensor:
    """|out - target|^2 / |target|^2 of each token, [T], each dimension as much as ``reader_D`` says."""
    if reader_D is not None:
        out_TD, target_TD = out_TD * reader_D, target_TD * reader_D
    return (out_TD - target_TD).square().sum(-1) / target_TD.square().sum(-1).clamp_min(1e-12)


@torch.no_grad()
def _judge(layer: Layer, data: LayerData) -> tuple[float, float]:
    """The mean relative error and the share of neurons that fire, on the tokens kept from training."""
    error, fired, seen = 0.0, 0, 0
    for part in blocks(data.held):
        residual_TD = data.residual(layer, part)
        out_TD = residual_TD.clone()
        for token, h_TF, part_TD in layer.ffn_parts(layer.norm(residual_TD)):
            out_TD.index_add_(0, token, part_TD)
            fired += int((h_TF != 0).sum())
            seen += h_TF.numel()
        target_TD = data.target_TD[part].to(layer.device)
        error += float(relative_error(out_TD, target_TD, layer.reader_D).double().sum())
    tokens = len(data.x_TD) - data.train_tokens
    error, all_tokens, all_fired, all_seen = processes.sums(error, tokens, fired, seen)
    return error / max(1.0, all_tokens), all_fired / max(1.0, all_seen)


@torch.no_grad()
def expert_tokens(layer: Layer, data: LayerData) -> list[int]:
    """Training tokens that each FFN sees, of all processes."""
    counts = [0] * max(1, layer.experts)
    for x_TD in data.ffn_inputs(layer, data.train):
        for expert, (token, _) in enumerate(layer.route(x_TD)):
            counts[expert] += len(token)
    return [int(count) for count in processes.sums(*counts)]
