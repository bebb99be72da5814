"""Local recovery: each sparse layer is trained, alone, to give what the dense layer gives.

Two streams run through the sweep. The teacher's is the dense model's. The student's has already been through the
recovered layers before this one, so each layer also learns to make good what those left over.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .errors import TsconvertError
from .layers import Layer
from .sweep import Stream

# Shape suffixes: T tokens, D model width, F neurons, C attention context.
_RAMP = 0.6  # share of the steps after which the wanted density is reached
_GAIN, _DAMPING = 0.2, 3.0  # of the penalty's controller


@dataclass(frozen=True, kw_only=True)
class LocalRecovery:
    """How each layer is trained."""

    steps: int = 200
    batch_tokens: int = 2048
    learning_rate: float | None = None
    """AdamW's, at its peak; a cosine takes it to zero. None: 3e-3 up to width 576, where it was measured, and falling
    as 1/width from there (muP, arXiv 2203.03466)."""
    train_attention: bool = True
    """The attention's output projection learns as well."""
    target_sparsity: float | None = None
    """Share of neurons to be silent, 0 to 1; a penalty on the activations steers there. None: no penalty."""
    autocast: bool = True
    """Matrix products in bfloat16, sums and weights in float32."""

    def __post_init__(self) -> None:
        if self.target_sparsity is not None and not 0 < self.target_sparsity < 1:
            raise TsconvertError(f"--target-sparsity {self.target_sparsity:g}: it must lie between 0 and 1")
        if self.steps < 1 or self.batch_tokens < 1:
            raise TsconvertError("recovery needs at least one step of one token")

    def peak(self, width: int) -> float:
        """The learning rate for a model of ``width``."""
        return 3e-3 * min(1.0, 576 / width) if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """What one layer's recovery did, on tokens that it was not trained on."""

    error_before: float
    """Mean over tokens of |student - teacher|^2 / |teacher|^2 at the layer's output."""
    error_after: float
    density: float
    """Share of neurons that fire."""
    expert_tokens: list[int]
    """Training tokens that each FFN saw."""


@dataclass
class LayerData:
    """The student's way into the layer and the teacher's way out of it, for all tokens."""

    x_TD: torch.Tensor
    """The student's hidden states before the layer."""
    context_TC: torch.Tensor
    """What its attention's output projection is given."""
    target_TD: torch.Tensor
    """The teacher's hidden states after the layer."""
    train_tokens: int
    """The first so many tokens are trained on, the rest judge."""


def recover_layer(
    layer: Layer, data: LayerData, how: LocalRecovery, generator: torch.Generator, expert_tokens: list[int]
) -> LayerResult:
    """Train ``layer``'s FFN (and attention output) in place.

    The loss is each token's squared error over its squared norm: the norm of the next layer divides the token's scale
    away, and without the division the few tokens with huge hidden states are all that counts.

    Raises:
        TsconvertError: the loss is no number.
    """
    before, _ = _judge(layer, data)
    parameters = _trainable(layer, how)
    peak = how.peak(data.x_TD.shape[1])
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    penalty = _Penalty(how)
    for step in range(how.steps):
        optimizer.param_groups[0]["lr"] = peak * _schedule(step, how.steps)
        batch = torch.randint(data.train_tokens, (how.batch_tokens,), generator=generator)
        loss, fired = _loss(layer, data, batch, penalty, how)
        if not bool(loss.isfinite()):
            raise TsconvertError(
                f"layer {layer.index}: the loss is {loss.item()} at step {step}; lower the learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        penalty.steer(step, fired)
    layer.module.requires_grad_(False)
    after, density = _judge(layer, data)
    return LayerResult(error_before=before, error_after=after, density=density, expert_tokens=expert_tokens)


def judge_layer(layer: Layer, data: LayerData, expert_tokens: list[int]) -> LayerResult:
    """What `recover_layer` reports, for a layer that stays as it is."""
    error, density = _judge(layer, data)
    return LayerResult(error_before=error, error_after=error, density=density, expert_tokens=expert_tokens)


class _Penalty:
    """L1 on h_j |down_j|, its weight steered so that the density follows a ramp down to the one asked for."""

    def __init__(self, how: LocalRecovery) -> None:
        self.goal = None if how.target_sparsity is None else 1 - how.target_sparsity
        self.steps = how.steps
        self.weight = 0.0 if self.goal is None else 1e-3
        self.start: float | None = None
        self.density: float | None = None
        self.scale: float | None = None
        self.error = 0.0

    def of(self, l1: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            self.scale = max(l1.item(), 1e-12)
        return self.weight * l1 / self.scale

    def steer(self, step: int, fired: float) -> None:
        """After each step, with the share of neurons that fired in it: a controller on the logarithm of the weight."""
        if self.goal is None:
            return
        self.density = fired if self.density is None else 0.7 * self.density + 0.3 * fired
        self.start = max(fired, self.goal) if self.start is None else self.start
        ramp = min(1.0, step / (_RAMP * self.steps))
        wanted = self.start * (self.goal / self.start) ** ramp
        error = math.log(max(self.density, 1e-6) / wanted)
        change = _GAIN * error + _DAMPING * (error - self.error)
        self.error = error
        self.weight = min(1e3, max(1e-5, self.weight * math.exp(max(-0.7, min(0.7, change)))))


def _trainable(layer: Layer, how: LocalRecovery) -> list[nn.Parameter]:
    mlp = layer.module.mlp
    ffn = list(mlp.experts.parameters()) if layer.experts else list(mlp.parameters())
    attention = [layer.module.self_attn.o_proj.weight] if how.train_attention else []
    parameters = [*ffn, *attention]
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def _loss(
    layer: Layer, data: LayerData, batch: torch.Tensor, penalty: _Penalty, how: LocalRecovery
) -> tuple[torch.Tensor, float]:
    device = layer.device
    x_TD, context_TC, target_TD = (part[batch].to(device) for part in (data.x_TD, data.context_TC, data.target_TD))
    with torch.autocast(device.type, torch.bfloat16, enabled=how.autocast):
        residual_TD = x_TD + layer.module.self_attn.o_proj(context_TC).float()
        normed_TD = layer.norm(residual_TD)
        out_TD = residual_TD
        l1 = torch.zeros((), device=device)
        fired, seen = 0.0, 0
        for expert, (token, h_TF, part_TD) in enumerate(layer.ffn_parts(normed_TD)):
            out_TD = out_TD.index_add(0, token, part_TD.float()) if layer.experts else out_TD + part_TD.float()
            if penalty.goal is not None:
                down_F = layer.ffn_weights(expert)[2].detach().norm(dim=0)
                l1 = l1 + (h_TF.float().abs() * down_F).sum() / batch.numel()
                fired += float((h_TF > 0).sum())
                seen += h_TF.numel()
    loss = relative_error(out_TD, target_TD).mean()
    return loss + penalty.of(l1) if penalty.goal is not None else loss, fired / max(1, seen)


def relative_error(out_TD: torch.Tensor, target_TD: torch.Tensor) -> torch.Tensor:
    """|out - target|^2 / |target|^2 of each token, [T]."""
    return (out_TD - target_TD).square().sum(-1) / target_TD.square().sum(-1).clamp_min(1e-12)


@torch.no_grad()
def _judge(layer: Layer, data: LayerData) -> tuple[float, float]:
    """The mean relative error and the share of neurons that fire, on the tokens kept from training."""
    errors, fired, seen = [], 0, 0
    for part in _parts(data.train_tokens, len(data.x_TD)):
        residual_TD = _residual(layer, data, part)
        out_TD = residual_TD.clone()
        for token, h_TF, part_TD in layer.ffn_parts(layer.norm(residual_TD)):
            out_TD.index_add_(0, token, part_TD)
            fired += int((h_TF != 0).sum())
            seen += h_TF.numel()
        errors.append(relative_error(out_TD, data.target_TD[part].to(layer.device)))
    return float(torch.cat(errors).mean()), fired / max(1, seen)


@torch.no_grad()
def expert_tokens(layer: Layer, data: LayerData) -> list[int]:
    """Training tokens that each FFN sees."""
    counts = [0] * max(1, layer.experts)
    for part in _parts(0, data.train_tokens):
        for expert, (token, _) in enumerate(layer.route(layer.norm(_residual(layer, data, part)))):
            counts[expert] += len(token)
    return counts


def _residual(layer: Layer, data: LayerData, part: slice) -> torch.Tensor:
    context_TC = data.context_TC[part].to(layer.device)
    residual_TD: torch.Tensor = data.x_TD[part].to(layer.device) + layer.module.self_attn.o_proj(context_TC)
    return residual_TD


def _parts(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, 4096):
        yield slice(first, min(first + 4096, stop))


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def student_step(student: Stream, layer: Layer, target_NSD: torch.Tensor, train_tokens: int) -> LayerData:
    """Push the student through its attention half and keep what the layer's training needs."""
    x_TD = student.hidden_NSD.flatten(0, 1).clone()
    spec = student.checkpoint.spec
    context_NSC = torch.empty(*student.rows_NS.shape, spec.heads * spec.head_dim)
    student.attend(layer, context_NSC)
    return LayerData(
        x_TD=x_TD, context_TC=context_NSC.flatten(0, 1), target_TD=target_NSD.flatten(0, 1), train_tokens=train_tokens
    )


def student_finish(student: Stream, layer: Layer, data: LayerData) -> None:
    """Push the student through the trained layer, from before it: just what a resumed run does."""
    student.hidden_NSD.copy_(data.x_TD.view_as(student.hidden_NSD))
    student.attend(layer)
    student.feed_forward(layer)
