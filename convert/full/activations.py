"""What full recovery sees of the FFNs while the whole model runs: activations, their L1, and a mask in the loop."""

from typing import Any, Protocol

import torch

from ...common import processes

# Shape suffixes: N sequences, S tokens a sequence, T = N*S tokens, D model width, F neurons.


_OUTSIDE = 4.0  # price of an activation that the mask would lose, in the penalty, against 1 of others
_COUNT_EVERY = 4  # tokens, while training
_NORMS_LAST = 8  # forward passes


class InLoop(Protocol):
    """Trained with the whole model, beside it: predictors, whose mask some of the sequences go through."""

    share: float
    """Of the sequences of a batch, those that go through the mask."""

    def start(self, model: Any) -> None:
        """Put own modules into ``model``'s FFNs, to be trained and saved with it."""

    def rate(self, width: int) -> float:
        """The learning rate of those modules' weights."""

    def look(
        self, layer: int, expert: int, x_TD: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits [T, F] that name a neuron where they are at least 0, and a loss of its own where something learns.

        Args:
            h_TF: the activations, without their graph.
            down_F: the norms of down's columns; None where nothing learns.
        """

    def use(self, h_TF: torch.Tensor, z_TF: torch.Tensor, masked_T: torch.Tensor) -> torch.Tensor:
        """The activations without what the logits do not name, for the tokens ``masked_T``."""

    def step(self) -> None:
        """After the forward pass of each micro-batch, in all processes."""


class Meter:
    """Collects, during one forward pass, what all layers' FFNs do.

    Args:
        model: a model of modeling_turbosparse.
        in_loop: see `InLoop`.
    """

    def __init__(self, model: Any, in_loop: InLoop | None = None) -> None:
        self.in_loop = in_loop
        self.layers = len(model.model.layers)
        self.penalised = True
        self.outside = _OUTSIDE
        self.signed = getattr(model.config, "ffn_activation", "drelu") == "reglu"
        self._open = False
        self._scale: list[float] = []
        self._down: dict[tuple[int, int], tuple[int, torch.Tensor | None]] = {}
        self.begin()
        for index, layer in enumerate(model.model.layers):
            ffn = layer.mlp.experts if hasattr(layer.mlp, "experts") else layer.mlp
            ffn.watch = _Watch(self, index)

    def begin(self, tokens: int = 1, masked_tokens: int = 0, *, learns: bool = False) -> None:
        """Before a forward pass of ``tokens``: forget the last; the first ``masked_tokens`` go through the mask."""
        self.tokens, self.masked_tokens, self.learns, self._open = tokens, masked_tokens, learns, True
        self.l1: list[list[torch.Tensor]] = [[] for _ in range(self.layers)]
        self.losses: list[torch.Tensor] = []
        self._counts: list[tuple[int, torch.Tensor, int]] = []

    def end(self) -> None:
        """After it; what gradient checkpointing computes again is not counted twice."""
        self._open = False

    def penalty(self) -> torch.Tensor:
        """The L1 of each layer, in units of what it was at first, its mean over layers."""
        each = torch.stack([torch.stack(parts).sum() for parts in self.l1 if parts])
        if not self._scale:
            sums = processes.sums(*each.tolist())
            self._scale = [max(value / processes.world(), 1e-12) for value in sums]
        return (each / torch.tensor(self._scale, device=each.device)).mean()

    @property
    def fired(self) -> torch.Tensor:
        """Of each layer, how many activations were not zero, and how many were looked at: [layers, 2], float64."""
        found = torch.zeros(self.layers, 2, dtype=torch.float64)
        counts = torch.stack([count for _, count, _ in self._counts]).tolist() if self._counts else []
        for (layer, _, seen), fired in zip(self._counts, counts, strict=True):
            found[layer] += torch.tensor([fired, seen])
        return found

    def density(self) -> list[float]:
        """Share of neurons that fired in each layer, over all processes."""
        sums = processes.sums(*self.fired.flatten().tolist())
        return [fired / max(1.0, seen) for fired, seen in zip(sums[::2], sums[1::2], strict=True)]

    def refresh(self) -> None:
        """Down's norms are taken anew: a run that goes on from here starts with them."""
        self._down.clear()

    def state(self) -> list[float]:
        """What a resumed run needs."""
        return self._scale

    def restore(self, state: list[float]) -> None:
        """Back to what `state` gave."""
        self._scale = list(state)

    @torch.no_grad()
    def _norms(self, layer: int, expert: int, down_DF: torch.Tensor) -> torch.Tensor:
        """The norms of down's columns, as they were not many passes ago."""
        age, down_F = self._down.get((layer, expert), (0, None))
        if down_F is None or (age >= _NORMS_LAST and self._open):
            age, down_F = 0, down_DF.float().norm(dim=0)
        self._down[layer, expert] = age + 1, down_F
        return down_F

    def see(
        self, layer: int, h: torch.Tensor, x: torch.Tensor, down_DF: torch.Tensor, expert: int,
        token: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """One FFN's h, [..., F]; returns the h to be used."""
        h_TF, x_TD = h.flatten(0, -2), x.flatten(0, -2)
        learning = torch.is_grad_enabled()
        if self._open:
            with torch.no_grad():
                some_TF = h_TF[:: _COUNT_EVERY if learning else 1]
                self._counts.append((layer, torch.count_nonzero(some_TF), some_TF.numel()))
        down_F = self._norms(layer, expert, down_DF)
        z_TF = None
        if self.in_loop is not None and (self.learns or self.masked_tokens):
            learns = self.learns and self._open
            z_TF, loss = self.in_loop.look(layer, expert, x_TD.detach(), h_TF.detach(), down_F if learns else None)
            if loss is not None:
                self.losses.append(loss)
        if self.penalised and learning:
            tap: Any = _Tap.apply
            price_TF = None if z_TF is None else torch.where(z_TF.detach() >= 0, 1.0, self.outside).to(h_TF.dtype)
            h_TF, l1 = tap(h_TF, down_F, price_TF, self.signed)
            if self._open:
                self.l1[layer].append(l1 / self.tokens)
        if self.in_loop is not None and z_TF is not None and self.masked_tokens:
            place_T = torch.arange(len(h_TF), device=h.device) if token is None else token
            h_TF = self.in_loop.use(h_TF, z_TF, place_T < self.masked_tokens)
        return h_TF.view_as(h)


class _Tap(torch.autograd.Function):
    """h as it is, and sum |h_j| down_j price_j, whose gradient joins h's own on its way back."""

    @staticmethod
    def forward(
        ctx: Any, h_TF: torch.Tensor, down_F: torch.Tensor, price_TF: torch.Tensor | None, signed: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h is at least 0 under dReLU; under ReGLU its sign counts."""
        ctx.save_for_backward(down_F, price_TF, h_TF if signed else None)
        size_TF = h_TF.abs() if signed else h_TF
        if price_TF is not None:
            size_TF = size_TF * price_TF
        return h_TF.view_as(h_TF), (size_TF @ down_F.to(h_TF.dtype)).sum(dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """Where h is 0, dReLU's own slope is too."""
        down_F, price_TF, h_TF = ctx.saved_tensors
        more = (slopes[1] * down_F).to(slopes[0].dtype)
        if price_TF is not None:
            more = more * price_TF
        if h_TF is not None:
            more = more * h_TF.sign()
        return slopes[0] + more, None, None, None


class _Watch:
    """`modeling_turbosparse.Watch` of one layer."""

    def __init__(self, meter: Meter, layer: int) -> None:
        self.meter, self.layer = meter, layer

    def __call__(
        self, h: torch.Tensor, x: torch.Tensor, down_DF: torch.Tensor, expert: int, token: torch.Tensor | None
    ) -> torch.Tensor:
        return self.meter.see(self.layer, h, x, down_DF, expert, token)
