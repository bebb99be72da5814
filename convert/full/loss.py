"""The loss of full recovery: cross-entropy with the text and KL divergence from the dense teacher, in one pass.

Both are cross-entropies towards a target distribution, so that their sum has the plain gradient
(a + b) softmax(student) - a onehot - b teacher. It is made together with the loss, some tokens at a time, so that no
second copy of the logits in float32 is ever needed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from ...text.training_rows import IGNORED

# Shape suffixes: T tokens, V vocabulary, K largest logits that were kept, D model width.
_CHUNK_ELEMENTS = 2**23
_LOOK_EVERY = 4  # tokens, for which the teacher's whole vocabulary is looked at


@dataclass(frozen=True)
class TopK:
    """The teacher's K largest log-probabilities of each token; what is left to the others is one lump."""

    index_TK: torch.Tensor
    log_TK: torch.Tensor


Teacher = torch.Tensor | TopK | None


@dataclass(frozen=True)
class Losses:
    """Means over the tokens that have a label; `total` has the gradient."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    divergence: torch.Tensor


def distillation(
    student_TV: torch.Tensor, teacher: Teacher, label_T: torch.Tensor, cross_entropy: float, divergence: float
) -> Losses:
    """``cross_entropy`` times the cross-entropy plus ``divergence`` times KL(teacher || student).

    Args:
        student_TV: logits.
        teacher: its logits [T, V], its largest log-probabilities, or None without a teacher.
        label_T: token ids; IGNORED where there is none.
    """
    blend: Any = _Blend.apply
    total, entropy, kl = blend(student_TV, teacher, label_T, cross_entropy, divergence)
    return Losses(total, entropy, kl)


class _Blend(torch.autograd.Function):
    """Loss and gradient in one pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any, student_TV: torch.Tensor, teacher: Teacher, label_T: torch.Tensor, a: float, b: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Totals and both parts."""
        slope_TV = torch.empty_like(student_TV) if ctx.needs_input_grad[0] else None
        sums = torch.zeros(2, device=student_TV.device)
        count = (label_T != IGNORED).sum().clamp_min(1)
        step = max(1, _CHUNK_ELEMENTS // student_TV.shape[1])
        for start in range(0, len(student_TV), step):
            part = slice(start, start + step)
            log_TV = functional.log_softmax(student_TV[part].float(), -1)
            known_T = label_T[part] != IGNORED
            target_T1 = label_T[part].clamp_min(0)[:, None]
            sums[0] -= (log_TV.gather(1, target_T1)[:, 0] * known_T).sum()
            target_TV = None
            if teacher is not None:
                target_TV, divergence_T = _target(log_TV, teacher, part)
                sums[1] += (divergence_T * known_T).sum()
            if slope_TV is not None:
                slope_TV[part] = _slope(log_TV, target_TV, target_T1, a, b).mul_((known_T / count)[:, None])
        ctx.slope_TV = slope_TV
        entropy, divergence = sums / count
        ctx.mark_non_differentiable(entropy, divergence)
        return a * entropy + b * divergence, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        """The gradient that the forward pass made, scaled."""
        return ctx.slope_TV.mul_(slopes[0]), None, None, None, None


def distillation_on_likeliest(
    student_TD: torch.Tensor, teacher_TD: torch.Tensor, student_VD: torch.Tensor, teacher_VD: torch.Tensor,
    label_T: torch.Tensor, likeliest: int, cross_entropy: float, divergence: float,
) -> Losses:  # fmt: skip
    """`distillation` on the part of the vocabulary that the teacher finds likeliest in the batch.

    Both distributions are renormalized on it. The likeliest are those of a quarter of the batch's tokens: of 49,152
    8,192 hold 96 % of the mass in a batch of 1,024. The head takes a quarter of the time.

    Args:
        student_TD, teacher_TD: what the heads are given; of tokens that have a label alone.
        student_VD, teacher_VD: the heads' weights, which are not trained.
        label_T: token ids.
        likeliest: tokens of the vocabulary, the labels among them.

    Returns:
        Losses; the cross-entropy is 0 where its weight is.
    """
    blend: Any = _BlendOfLikeliest.apply
    a, b = cross_entropy, divergence
    total, entropy, kl = blend(student_TD, teacher_TD, student_VD, teacher_VD, label_T, likeliest, a, b)
    return Losses(total, entropy, kl)


class _BlendOfLikeliest(torch.autograd.Function):
    """Loss and gradient in one pass."""

    @staticmethod
    def forward(
        ctx: Any, student_TD: torch.Tensor, teacher_TD: torch.Tensor, student_VD: torch.Tensor,
        teacher_VD: torch.Tensor, label_T: torch.Tensor, likeliest: int, a: float, b: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Total and both parts."""
        step = max(1, _CHUNK_ELEMENTS // len(teacher_VD))
        sums = torch.zeros(2, device=student_TD.device)
        ctx.slope_TD = slope_TD = torch.empty_like(student_TD)
        if not len(student_TD):
            return sums.sum(), *sums
        looked_TD, head_VD = teacher_TD[::_LOOK_EVERY], teacher_VD.to(teacher_TD.dtype)
        mass_V = torch.zeros(len(teacher_VD), device=student_TD.device)
        for start in range(0, len(looked_TD), step):
            mass_V += functional.linear(looked_TD[start : start + step], head_VD).softmax(-1).float().sum(0)
        labels = label_T.unique() if a else label_T[:0]
        mass_V[labels] = torch.inf
        chosen = mass_V.topk(min(max(likeliest, len(labels)), len(mass_V))).indices.sort().values
        theirs_VD = head_VD[chosen]
        few_VD = student_VD[chosen]
        if torch.is_autocast_enabled(student_TD.device.type):
            few_VD = few_VD.to(torch.get_autocast_dtype(student_TD.device.type))
        step = max(1, _CHUNK_ELEMENTS // len(chosen))
        for start in range(0, len(student_TD), step):
            part = slice(start, start + step)
            ours_TV = functional.log_softmax(functional.linear(student_TD[part].to(few_VD.dtype), few_VD).float(), -1)
            theirs_TV = functional.log_softmax(functional.linear(teacher_TD[part], theirs_VD).float(), -1)
            p_TV = theirs_TV.exp()
            sums[1] += theirs_TV.sub_(ours_TV).mul_(p_TV).sum()
            target_T1 = torch.searchsorted(chosen, label_T[part])[:, None] if a else None
            if target_T1 is not None:
                sums[0] -= ours_TV.gather(1, target_T1).sum()
            slope_TD[part] = _slope(ours_TV, p_TV, target_T1, a, b).to(few_VD.dtype) @ few_VD
        slope_TD.div_(len(student_TD))
        entropy, divergence = sums / len(student_TD)
        ctx.mark_non_differentiable(entropy, divergence)
        return a * entropy + b * divergence, entropy, divergence

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient that the forward pass made, scaled."""
        return ctx.slope_TD.mul_(slopes[0]), *[None] * 7


def _slope(
    log_TV: torch.Tensor, teacher_TV: torch.Tensor | None, label_T1: torch.Tensor | None, a: float, b: float
) -> torch.Tensor:
    """(a + b) softmax(student) - a onehot(label) - b teacher, in the place of the student's log-probabilities."""
    slope_TV = log_TV.exp_()
    if teacher_TV is None:
        slope_TV.mul_(a)
    else:
        slope_TV.mul_(a + b).sub_(teacher_TV, alpha=b)
    if label_T1 is not None:
        slope_TV.scatter_add_(1, label_T1, torch.full_like(label_T1, -a, dtype=slope_TV.dtype))
    return slope_TV


def _target(log_TV: torch.Tensor, teacher: torch.Tensor | TopK, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The distribution [T, V] that KL pulls towards, and the KL of each token."""
    if isinstance(teacher, torch.Tensor):
        goal_TV = functional.log_softmax(teacher[part].float(), -1)
        p_TV = goal_TV.exp()
        return p_TV, (goal_TV.sub_(log_TV)).mul_(p_TV).sum(-1)
    index_TK, kept_TK = teacher.index_TK[part].long(), teacher.log_TK[part].float()
    ours_TK = log_TV.gather(1, index_TK)
    p_TK = kept_TK.exp()
    rest_T1 = (1 - p_TK.sum(-1, keepdim=True)).clamp_min(1e-6)
    own_T1 = (1 - ours_TK.exp().sum(-1, keepdim=True)).clamp_min(1e-6)
    target_TV = log_TV.exp().mul_(rest_T1 / own_T1).scatter_(1, index_TK, p_TK)
    divergence_T = (p_TK * (kept_TK - ours_TK)).sum(-1) + (rest_T1 * (rest_T1 / own_T1).log())[:, 0]
    return target_TV, divergence_T


def hidden_distance(student: list[torch.Tensor], teacher: list[torch.Tensor]) -> torch.Tensor:
    """Mean over layers and tokens of |student - teacher|^2 / |teacher|^2 of the hidden states [..., D]."""
    distances = [
        ((ours.float() - theirs.float()).square().sum(-1) / theirs.float().square().sum(-1).clamp_min(1e-12)).mean()
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(distances).mean()
