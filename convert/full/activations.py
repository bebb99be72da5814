"""The FFNs of a whole model in training: their activations are counted, penalised, and masked by predictors."""

from dataclasses import asdict
from typing import Any

import torch

from ...common import processes
from ...model.modeling_turbosparse import SparseExperts, SparseFFN, factors, up_sizes
from ...model.sparse_checkpoint import Thresholds
from ..masked.model_predictors import ModelPredictors
from ..penalty import bend, count

# Shape suffixes: N sequences, S tokens a sequence, T = N*S tokens, D model width, F neurons, K experts per token.
_OUTSIDE = 4.0  # price, in the penalty, of an activation that the mask would lose, against 1 for others
_COUNT_EVERY = 4  # tokens, while training
_LOOK_EVERY = 8  # tokens, for the thresholds
_NORMS_LAST = 8  # forward passes


class ActivationMonitor:
    """Takes the place of the model's FFNs and collects, during one forward pass, what all of them do.

    Args:
        model: a model of modeling_turbosparse; of a dense one nothing is collected.
        predictors: put into the FFNs, to be trained and saved with the model.
    """

    def __init__(self, model: Any, predictors: ModelPredictors | None = None) -> None:
        self.predictors = predictors
        self.layers = len(model.model.layers)
        self.penalised = True
        self.counts = False
        """The price of an activation is that of penalty.count, not L1."""
        self.compares = False
        """`compared` is collected."""
        self.ffns: list[_MonitoredFFN | _MonitoredExperts] = []
        self.outside = _OUTSIDE
        self.signed = getattr(model.config, "ffn_activation", "drelu") != "drelu"
        self._open = False
        self._scale: list[float] = []
        self._bends: dict[int, float] = {}
        self._down: dict[tuple[int, int], tuple[int, torch.Tensor | None]] = {}
        self.begin()
        for index, layer in enumerate(model.model.layers):
            if isinstance(layer.mlp, SparseFFN):
                layer.mlp = _MonitoredFFN(layer.mlp, self, index)
                self.ffns.append(layer.mlp)
            elif isinstance(getattr(layer.mlp, "experts", None), SparseExperts):
                layer.mlp.experts = _MonitoredExperts(layer.mlp.experts, self, index)
                self.ffns.append(layer.mlp.experts)
            if predictors is not None:
                layer.mlp.predictor = predictors.layers[index]

    def begin(self, tokens: int = 1, masked_tokens: int = 0, *, learns: bool = False) -> None:
        """Forget the last forward pass, before one of ``tokens``, the first ``masked_tokens`` of them masked.

        Args:
            learns: the predictors' own loss is computed.
        """
        self.tokens, self.masked_tokens, self.learns, self._open = tokens, masked_tokens, learns, True
        self.prices: list[list[torch.Tensor]] = [[] for _ in range(self.layers)]
        self.compared: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(self.layers)]
        self.losses: list[torch.Tensor] = []
        self._counts: list[tuple[int, torch.Tensor, int]] = []

    def end(self) -> None:
        """After the pass: what gradient checkpointing computes again is not counted twice."""
        self._open = False

    def penalty(self) -> torch.Tensor:
        """The price of each layer's activations in units of its first value, mean over layers.

        The unit is the first micro-batch's, which is process 0's however many there are.
        """
        each = torch.stack([torch.stack(parts).sum() for parts in self.prices if parts])
        if not self._scale:
            self._scale = [max(value, 1e-12) for value in processes.broadcast(each.tolist())]
        return (each / torch.tensor(self._scale, device=each.device)).mean()

    @property
    def fired(self) -> torch.Tensor:
        """For each layer, how many activations were not zero, and how many were counted: [layers, 2], float64."""
        found = torch.zeros(self.layers, 2, dtype=torch.float64)
        counts = torch.stack([count for _, count, _ in self._counts]).tolist() if self._counts else []
        for (layer, _, seen), fired in zip(self._counts, counts, strict=True):
            found[layer] += torch.tensor([fired, seen])
        return found

    def density(self) -> list[float]:
        """Share of neurons that fired in each layer, over all processes."""
        return densities(processes.sums(*self.fired.flatten().tolist()))

    def refresh(self) -> None:
        """Measure down's norms anew: a run that goes on from a checkpoint starts with new ones."""
        self._down.clear()

    @property
    def thresholds(self) -> Thresholds:
        """Of all layers."""
        return Thresholds.of(self.ffns)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, and what goes with the weights of a checkpoint."""
        return {"scale": self._scale, "bends": list(self._bends.items()), "thresholds": asdict(self.thresholds)}

    def restore(self, state: dict[str, Any] | list[float]) -> None:
        """Go back to what `state` gave; an earlier version's gave the scale alone."""
        if isinstance(state, list):
            state = {"scale": state, "bends": [], "thresholds": asdict(self.thresholds)}
        self._scale, self._bends = list(state["scale"]), dict(state["bends"])
        found = state["thresholds"]
        for ffn, own, up in zip(self.ffns, found["own"], found["up"], strict=True):
            ffn.threshold, ffn.up_threshold = own, up

    def compare(
        self, layer: int, gate: torch.Tensor, up: torch.Tensor, activation: str, up_scale_F: torch.Tensor | None
    ) -> None:
        """Keep, of some tokens, what the layer's thresholds are held against."""
        if self.compares and self._open and torch.is_grad_enabled():
            gate_TF, up_TF = (part.detach().flatten(0, -2)[::_LOOK_EVERY] for part in (gate, up))
            self.compared[layer].append((factors(gate_TF, up_TF, activation), up_sizes(up_TF, up_scale_F)))

    @torch.no_grad()
    def _norms(self, layer: int, expert: int, down_DF: torch.Tensor) -> torch.Tensor:
        """The norms of down's columns, as they were not many passes ago."""
        age, down_F = self._down.get((layer, expert), (0, None))
        if down_F is None or (age >= _NORMS_LAST and self._open):
            age, down_F = 0, down_DF.float().norm(dim=0)
        self._down[layer, expert] = age + 1, down_F
        return down_F

    def _bend(self, layer: int, h_TF: torch.Tensor, down_F: torch.Tensor) -> float | None:
        """The e of penalty.count, by the layer's first activations; None for L1."""
        if self.counts and layer not in self._bends:
            self._bends[layer] = bend(h_TF.detach().abs() * down_F)
        return self._bends.get(layer)

    def use(
        self, layer: int, h: torch.Tensor, x: torch.Tensor, down_DF: torch.Tensor, expert: int = 0,
        token: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """The activations [..., F] that go into down, given those of one FFN, its inputs and which tokens they are."""
        h_TF, x_TD = h.flatten(0, -2), x.flatten(0, -2)
        learning = torch.is_grad_enabled()
        if self._open:
            with torch.no_grad():
                some_TF = h_TF[:: _COUNT_EVERY if learning else 1]
                self._counts.append((layer, torch.count_nonzero(some_TF), some_TF.numel()))
        down_F = self._norms(layer, expert, down_DF)
        predictors, z_TF = self.predictors, None
        if predictors is not None and (self.learns or self.masked_tokens):
            z_TF = predictors.predict(layer, expert, x_TD.detach())
            if z_TF is not None and self.learns and self._open:
                self.losses.append(predictors.loss(layer, expert, z_TF, h_TF.detach(), down_F))
        if self.penalised and learning:
            penalised: Any = _Penalised.apply
            price_TF = None if z_TF is None else torch.where(z_TF.detach() >= 0, 1.0, self.outside).to(h_TF.dtype)
            h_TF, price = penalised(h_TF, down_F, price_TF, self.signed, self._bend(layer, h_TF, down_F))
            if self._open:
                self.prices[layer].append(price / self.tokens)
        if predictors is not None and z_TF is not None and self.masked_tokens:
            place_T = torch.arange(len(h_TF), device=h.device) if token is None else token
            h_TF = predictors.masked(h_TF, z_TF, place_T < self.masked_tokens)
        return h_TF.view_as(h)


def densities(flat: list[float]) -> list[float]:
    """The share that fired in each layer, from `ActivationMonitor.fired` in one row."""
    return [fired / max(1.0, seen) for fired, seen in zip(flat[::2], flat[1::2], strict=True)]


class _MonitoredFFN(SparseFFN):
    """A SparseFFN, with its weights, whose activations a monitor sees."""

    def __init__(self, ffn: SparseFFN, monitor: ActivationMonitor, layer: int) -> None:
        super().__init__(ffn, ffn.activation, ffn.threshold, ffn.up_threshold, ffn.up_scale)
        self.monitor, self.layer = monitor, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        gate, up = self.gate_up(x)
        self.monitor.compare(self.layer, gate, up, self.activation, self.up_scale)
        h = self.activate(gate, up)
        out: torch.Tensor = self.down_proj(self.monitor.use(self.layer, h, x, self.down_proj.weight))
        return out


class _MonitoredExperts(SparseExperts):
    """SparseExperts, with their weights, whose activations a monitor sees."""

    def __init__(self, experts: SparseExperts, monitor: ActivationMonitor, layer: int) -> None:
        super().__init__(experts, experts.activation, experts.threshold, experts.up_threshold, experts.up_scale)
        self.monitor, self.layer = monitor, layer

    def activations(
        self, x_TD: torch.Tensor, gate_up_FD: torch.Tensor, down_DF: torch.Tensor, expert: int, token: torch.Tensor
    ) -> torch.Tensor:
        """h [T, F] as it goes into ``down_DF``."""
        gate_TF, up_TF = torch.nn.functional.linear(x_TD, gate_up_FD).chunk(2, dim=-1)
        scale_F = None if self.up_scale is None else self.up_scale[expert]
        self.monitor.compare(self.layer, gate_TF, up_TF, self.activation, scale_F)
        h_TF = self.activate(gate_TF, up_TF, expert)
        return self.monitor.use(self.layer, h_TF, x_TD, down_DF, expert, token)


class _Penalised(torch.autograd.Function):
    """h as it is, and its price, whose gradient joins h's own on its way back.

    The price is sum z_j price_j of z_j = |h_j| down_j, or with ``e`` the sum of z_j / (z_j + e) price_j.
    """

    @staticmethod
    def forward(
        ctx: Any, h_TF: torch.Tensor, down_F: torch.Tensor, price_TF: torch.Tensor | None, signed: bool,
        e: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """h is at least 0 under dReLU; else its sign counts."""
        ctx.save_for_backward(down_F, price_TF, h_TF if signed or e else None)
        ctx.signed, ctx.e = signed, e
        size_TF = h_TF.abs() if signed else h_TF
        if e:
            size_TF, down_F = count(size_TF * down_F.to(h_TF.dtype), e), torch.ones_like(down_F)
        if price_TF is not None:
            size_TF = size_TF * price_TF
        return h_TF.view_as(h_TF), (size_TF @ down_F.to(h_TF.dtype)).sum(dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        """Where h is 0, dReLU's own slope is too."""
        down_F, price_TF, h_TF = ctx.saved_tensors
        more = (slopes[1] * down_F).to(slopes[0].dtype)
        if ctx.e:
            more = more * ctx.e / (h_TF.abs() * down_F.to(h_TF.dtype) + ctx.e).square()
        if price_TF is not None:
            more = more * price_TF
        if ctx.signed:
            more = more * h_TF.sign()
        return slopes[0] + more, None, None, None, None
