"""Experts that the router gives too few calibration tokens: named, and given further ones to train on."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ...common import processes
from ...common.errors import TsconvertError
from ...common.progress import note
from ...model.layers import Layer
from ...model.modeling_turbosparse import activate
from ..layer_data import LayerData
from .layer_recovery import ExtraTokens

# Shape suffixes: T tokens, D model width, E experts.


@dataclass(frozen=True)
class _Best:
    """The inputs that an expert did not get, those that the router ranks highest for it."""

    score_T: torch.Tensor
    x_TD: torch.Tensor

    def with_(self, score_T: torch.Tensor, x_TD: torch.Tensor, most: int) -> "_Best":
        score_T, x_TD = torch.cat([self.score_T, score_T]), torch.cat([self.x_TD, x_TD])
        kept = score_T.topk(min(most, len(score_T))).indices
        return _Best(score_T[kept], x_TD[kept])


def further_tokens(layer: Layer, data: LayerData, seen: list[int], least: int) -> list[ExtraTokens]:
    """Training material for the experts that fewer than ``least`` tokens reach.

    The router's next best tokens for the expert are taken, and what the dense expert makes of them is to be learnt.
    Call it before the layer is trained; sign alignment leaves SwiGLU as it is.

    Raises:
        TsconvertError: the text has fewer than ``least`` tokens.
    """
    starved = {expert: least - tokens for expert, tokens in enumerate(seen) if tokens < least}
    if not starved:
        return []
    if data.all_train_tokens < least:
        raise TsconvertError(
            f"--min-expert-tokens {least}: the text has {data.all_train_tokens} tokens to train on; give more --tokens"
        )
    named = ", ".join(f"expert {expert} saw {seen[expert]}" for expert in starved)
    note(f"layer {layer.index}: {named} tokens; trained on the router's next best up to {least}")
    return [_material(layer, expert, best) for expert, best in _next_best(layer, data, starved).items()]


def refuse_starved(layer: Layer, seen: list[int], least: int) -> None:
    """Where nothing is trained, or the layer is sparse already, there is nothing to learn further tokens from.

    Raises:
        TsconvertError: fewer than ``least`` tokens reach an expert; names all of them.
    """
    starved = [expert for expert, tokens in enumerate(seen) if tokens < least]
    if starved:
        named = ", ".join(f"expert {expert} saw {seen[expert]} tokens" for expert in starved)
        raise TsconvertError(
            f"layer {layer.index}: {named}, fewer than --min-expert-tokens {least}; give more --tokens or other --data"
        )


@torch.no_grad()
def _next_best(layer: Layer, data: LayerData, starved: dict[int, int]) -> dict[int, _Best]:
    width = data.x_TD.shape[1]
    nothing = _Best(torch.empty(0, device=layer.device), torch.empty(0, width, device=layer.device))
    best = dict.fromkeys(starved, nothing)
    for x_TD in data.ffn_inputs(layer, data.train):
        logits_TE, routes = layer.router_logits(x_TD), layer.route(x_TD)
        for expert, missing in starved.items():
            others_T = torch.ones(len(x_TD), dtype=torch.bool, device=x_TD.device)
            others_T[routes[expert][0]] = False
            most = math.ceil(missing / processes.world())
            best[expert] = best[expert].with_(logits_TE[others_T, expert], x_TD[others_T], most)
    return best


@torch.no_grad()
def _material(layer: Layer, expert: int, best: _Best) -> ExtraTokens:
    h_TF = activate(*layer.gate_up(best.x_TD, expert), layer.spec.activation)
    target_TD = nn.functional.linear(h_TF, layer.ffn_weights(expert)[2])
    return ExtraTokens(expert=expert, x_TD=best.x_TD, target_TD=target_TD)
