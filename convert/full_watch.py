"""What full recovery sees of the FFNs while the whole model runs: activations, their L1, and a mask in the loop."""

from typing import Any, Protocol

import torch

from . import distributed

# Shape suffixes: N sequences, S tokens a sequence, T = N*S tokens, D model width, F neurons.


class InLoop(Protocol):
    """Trained with the whole model, beside it: predictors, whose mask some of the sequences go through."""

    share: float
    """Of the sequences of a batch, those that go through the mask."""

    def start(self, model: Any) -> None:
        """Put own modules into ``model``'s FFNs, to be trained and saved with it."""

    def rate(self, width: int) -> float:
        """The learning rate of those modules' weights."""

    def use(
        self, layer: int, expert: int, x_TD: torch.Tensor, h_TF: torch.Tensor, down_F: torch.Tensor,
        masked_T: torch.Tensor | None, *, learns: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """The activations that are to be used, and a loss of its own if it ``learns``.

        Args:
            masked_T: the tokens that go through the mask; None is none of them.
            down_F: the norms of down's columns.
        """

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
        self._open = False
        self._scale: list[float] = []
        self.begin()
        for index, layer in enumerate(model.model.layers):
            ffn = layer.mlp.experts if hasattr(layer.mlp, "experts") else layer.mlp
            ffn.watch = _Watch(self, index)

    def begin(self, tokens: int = 1, masked_tokens: int = 0, *, learns: bool = False) -> None:
        """Before a forward pass of ``tokens``: forget the last; the first ``masked_tokens`` go through the mask."""
        self.tokens, self.masked_tokens, self.learns, self._open = tokens, masked_tokens, learns, True
        self.l1: list[list[torch.Tensor]] = [[] for _ in range(self.layers)]
        self.losses: list[torch.Tensor] = []
        self.fired = torch.zeros(self.layers, 2, dtype=torch.float64)

    def end(self) -> None:
        """After it; what gradient checkpointing computes again is not counted twice."""
        self._open = False

    def penalty(self) -> torch.Tensor:
        """The L1 of each layer, in units of what it was at first, its mean over layers."""
        each = torch.stack([torch.stack(parts).sum() for parts in self.l1 if parts])
        if not self._scale:
            sums = distributed.sums(*each.tolist())
            self._scale = [max(value / distributed.world(), 1e-12) for value in sums]
        return (each / torch.tensor(self._scale, device=each.device)).mean()

    def density(self) -> list[float]:
        """Share of neurons that fired in each layer, over all processes."""
        sums = distributed.sums(*self.fired.flatten().tolist())
        return [fired / max(1.0, seen) for fired, seen in zip(sums[::2], sums[1::2], strict=True)]

    def state(self) -> list[float]:
        """What a resumed run needs."""
        return self._scale

    def restore(self, state: list[float]) -> None:
        """Back to what `state` gave."""
        self._scale = list(state)

    def see(
        self, layer: int, h: torch.Tensor, x: torch.Tensor, down_DF: torch.Tensor, expert: int,
        token: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """One FFN's h, [..., F]; returns the h to be used."""
        if self._open:
            with torch.no_grad():
                self.fired[layer] += torch.tensor([float(torch.count_nonzero(h)), h.numel()], dtype=torch.float64)
        h_TF, x_TD = h.flatten(0, -2), x.flatten(0, -2)
        down_F = down_DF.detach().float().norm(dim=0)
        if self.penalised and torch.is_grad_enabled() and self._open:
            self.l1[layer].append(h_TF.abs().sum(0, dtype=torch.float32) @ down_F / self.tokens)
        if self.in_loop is None:
            return h
        masked_T = None
        if self.masked_tokens:
            place_T = torch.arange(len(h_TF), device=h.device) if token is None else token
            masked_T = place_T < self.masked_tokens
        used_TF, loss = self.in_loop.use(layer, expert, x_TD, h_TF, down_F, masked_T, learns=self.learns and self._open)
        if loss is not None:
            self.losses.append(loss)
        return used_TF.view_as(h)


class _Watch:
    """`modeling_turbosparse.Watch` of one layer."""

    def __init__(self, meter: Meter, layer: int) -> None:
        self.meter, self.layer = meter, layer

    def __call__(
        self, h: torch.Tensor, x: torch.Tensor, down_DF: torch.Tensor, expert: int, token: torch.Tensor | None
    ) -> torch.Tensor:
        return self.meter.see(self.layer, h, x, down_DF, expert, token)
