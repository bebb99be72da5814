"""The statistics of an importance matrix: sums of squares of every matrix's inputs, collected in the layer sweep.

A column's weight is the mean square of what it is multiplied with. For ffn_down that is the activation h, so columns of
neurons that rarely fire weigh little. A sparse file stores down transposed: row j holds neuron j, and blocks run along
the embedding. How often j fires scales all columns of its row alike, which changes no level; what differs along the row
is how much the rest of the model makes of an error in each place of the embedding. That is what ffn_down_t gets: for
every later matrix behind a norm, the norm's weight squared, times the mean of 1/rms^2, times the matrix's column norm
squared. It is the diagonal of the squared error that reaches those matrices' outputs.

Shape suffixes: T tokens, D model width, F neurons, E experts, N sequences, S tokens a sequence, C attention context.
"""

from typing import Any

import numpy as np
import torch

from ...common import processes
from ...model.checkpoint import Checkpoint
from ...model.layers import Layer, read_tensor
from ...model.sweep import Stream
from ...model.tensor_names import Place, gguf_name
from .file import Entry


class Collector:
    """The sweep's visitor.

    Args:
        tokens: how many this process sees.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: int) -> None:
        self.spec, self.tokens = checkpoint.spec, tokens
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._sensitivity_D: list[torch.Tensor] = []
        """How much each layer's matrices, by layer, make of an error in each place of the embedding."""
        self._hooks: list[Any] = []

    def before(self, layer: Layer, stream: Stream) -> None:
        """Called before the attention half: counts what its matrices are given while it runs."""
        attention, width = layer.module.self_attn, self.spec.width
        shared = [Place(role, layer.index) for role in ("attn_q", "attn_k", "attn_v")]
        own = [Place("attn_output", layer.index)]
        first = attention.q_proj if hasattr(attention, "q_proj") else attention.qkv_proj
        for module, places in ((first, shared), (attention.o_proj, own)):
            total_C = torch.zeros(module.weight.shape[1], dtype=torch.float64, device=layer.device)
            for place in places:
                self._keep(gguf_name(place), total_C[None], torch.tensor([float(self.tokens)], dtype=torch.float64))
            self._hooks.append(module.register_forward_pre_hook(_adder(total_C)))
        matrices = [layer.weight(role) for role in ("attn_q", "attn_k", "attn_v")]
        self._sensitivity_D.append(_columns(matrices, width) * _normed("attn_norm", layer, stream))

    @torch.no_grad()
    def visit(self, layer: Layer, stream: Stream) -> str:
        """Count what the FFN's matrices are given; the words name experts that no token reached."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        experts = max(1, layer.experts)
        gate_ED = torch.zeros(experts, self.spec.width, dtype=torch.float64)
        down_EF = torch.zeros(experts, self.spec.neurons, dtype=torch.float64)
        count_E = torch.zeros(experts, dtype=torch.float64)
        for x_TD in stream.inputs(layer):
            for expert, (token, _) in enumerate(layer.route(x_TD)):
                seen_TD = x_TD[token] if layer.experts else x_TD
                gate_ED[expert] += seen_TD.square().sum(0).double().cpu()
                down_EF[expert] += layer.activations(seen_TD, expert).square().sum(0).double().cpu()
                count_E[expert] += len(token)
        expert_place = 0 if layer.experts else None
        for role, sums in (("ffn_gate", gate_ED), ("ffn_up", gate_ED), ("ffn_down", down_EF)):
            self._keep(gguf_name(Place(role, layer.index, expert_place)), sums, count_E)
        self._sensitivity_D[layer.index] += self._ffn_sensitivity(layer, stream, count_E)
        missed = int((count_E == 0).sum())
        return f"{missed} experts saw no token" if missed else ""

    def finish(self, checkpoint: Checkpoint, stream: Stream) -> dict[str, Entry]:
        """The entries, summed over all processes; with ffn_down_t where a sparse file has it."""
        done: dict[int, torch.Tensor] = {}
        for sums in self._sums.values():  # q, k and v share one
            if id(sums) not in done:
                done[id(sums)] = _summed(sums, stream)
        entries = {
            name: _entry(done[id(sums)], _summed(self._counts[name], stream)) for name, sums in self._sums.items()
        }
        return entries | (self._transposed(checkpoint, stream, entries) if self.spec.sparse else {})

    def _transposed(self, checkpoint: Checkpoint, stream: Stream, entries: dict[str, Entry]) -> dict[str, Entry]:
        norm_D = (read_tensor(checkpoint, Place("output_norm")) + self.spec.norm_offset).double()
        head_VD = read_tensor(checkpoint, Place("token_embd" if self.spec.tied else "output"))
        later_D = _columns([head_VD], self.spec.width) * norm_D.square() * _inverse(stream)
        found = {}
        for layer in reversed(range(self.spec.layers)):
            place = Place("ffn_down", layer, 0 if self.spec.experts else None)
            counts_E = entries[gguf_name(place)].counts_E
            weight_D = _summed(later_D, stream)
            weight_D = weight_D / weight_D.mean()
            sums_ED = weight_D[None] * torch.from_numpy(counts_E).double()[:, None]
            found[gguf_name(place, suffix="_t")] = _entry(sums_ED, torch.from_numpy(counts_E))
            later_D = later_D + self._sensitivity_D[layer]
        return found

    def _ffn_sensitivity(self, layer: Layer, stream: Stream, count_E: torch.Tensor) -> torch.Tensor:
        total_D = torch.zeros(self.spec.width, dtype=torch.float64)
        for expert, count in enumerate(count_E):
            gate_FD, up_FD, _ = layer.ffn_weights(expert)
            total_D += _columns([gate_FD, up_FD], self.spec.width) * (count / max(1, self.tokens))
        weighted_D: torch.Tensor = total_D * _normed("ffn_norm", layer, stream)
        return weighted_D

    def _keep(self, name: str, sums: torch.Tensor, counts: torch.Tensor) -> None:
        self._sums[name], self._counts[name] = sums, counts


def _normed(role: str, layer: Layer, stream: Stream) -> torch.Tensor | float:
    """What the norm of an input makes of a squared error in each place, [D]; 1 where there is no such norm."""
    norm_D = layer.norm_weight(role)
    return 1.0 if norm_D is None else norm_D.double().square().cpu() * _inverse(stream)


def _adder(total_C: torch.Tensor) -> Any:
    def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        total_C.add_(inputs[0].float().square().flatten(0, -2).sum(0).double())

    return hook


def _columns(matrices: list[torch.Tensor], width: int) -> torch.Tensor:
    """The sum over matrices of their columns' squared norms, [D]."""
    total_D = torch.zeros(width, dtype=torch.float64)
    for matrix in matrices:
        for rows in matrix.detach().split(4096):
            total_D += rows.float().square().sum(0).double().cpu()
    return total_D


def _inverse(stream: Stream) -> float:
    """The mean over tokens of 1 / rms^2 of the hidden states as they are now."""
    total, count = 0.0, 0
    for part in stream.batches():
        mean_T = stream.hidden_NSD[part].square().mean(-1).flatten()
        total += float((1 / (mean_T + stream.checkpoint.spec.norm_eps)).double().sum())
        count += mean_T.numel()
    return total / max(1, count)


def _summed(tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
    total: torch.Tensor = processes.sum_(tensor.to(stream.device).clone()).cpu()
    return total


def _entry(sums: torch.Tensor, counts: torch.Tensor) -> Entry:
    return Entry(sums.numpy().astype(np.float32), counts.numpy().astype(np.float32))
