"""One decoder layer at a time: transformers' own modules, built without weights and filled from a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..common.errors import TsconvertError, reason
from .checkpoint import Checkpoint
from .families import FAMILIES
from .families.family import Family
from .files.dtypes import to_float32
from .modeling_turbosparse import SparseExperts, activate, factors, sparsify
from .tensor_names import FFN, PREDICTOR, Place

# Shape suffixes: N sequences, S tokens a sequence, T = N*S tokens, D model width, F neurons, C attention context.
_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensor(checkpoint: Checkpoint, place: Place) -> torch.Tensor:
    """The tensor at ``place`` as float32, in memory of its own."""
    info = checkpoint.info(place)
    flat = torch.frombuffer(bytearray(checkpoint.raw(place)), dtype=_TORCH_DTYPES[info.dtype])
    return flat.reshape(info.shape).float()


@dataclass
class Layer:
    """A decoder layer in float32: its attention half and its FFN half, apart."""

    index: int
    module: Any
    """transformers' decoder layer."""
    activation: str
    rotary: Any
    mask: torch.Tensor | None
    experts: int
    parameters: Mapping[str, str]
    """Role -> the path of its parameter in ``module``; experts left out."""

    @property
    def threshold(self) -> float:
        """Outputs of relu up to this count as zero."""
        mlp = self.module.mlp
        return float(getattr(mlp.experts if self.experts else mlp, "threshold", 0.0))

    @threshold.setter
    def threshold(self, value: float) -> None:
        mlp = self.module.mlp
        (mlp.experts if self.experts else mlp).threshold = value

    @property
    def up_threshold(self) -> float:
        """The size up to which an up silences its neuron, under `tswiglu`."""
        mlp = self.module.mlp
        return float(getattr(mlp.experts if self.experts else mlp, "up_threshold", 0.0))

    @up_threshold.setter
    def up_threshold(self, value: float) -> None:
        mlp = self.module.mlp
        (mlp.experts if self.experts else mlp).up_threshold = value

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.module.input_layernorm.weight.device
        return device

    @torch.no_grad()
    def attend(self, x_NSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after attention [N, S, D], and the input of the output projection [N, S, C]."""
        kept: list[torch.Tensor] = []
        attention = self.module.self_attn
        hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        position = torch.arange(x_NSD.shape[1], device=x_NSD.device)[None]
        try:
            out_NSD, _ = attention(
                hidden_states=self.module.input_layernorm(x_NSD),
                position_embeddings=self.rotary(x_NSD, position_ids=position),
                attention_mask=self.mask,
            )
        finally:
            hook.remove()
        return x_NSD + out_NSD, kept[0]

    def norm(self, residual_TD: torch.Tensor) -> torch.Tensor:
        """The FFN's input."""
        normed_TD: torch.Tensor = self.module.post_attention_layernorm(residual_TD)
        return normed_TD

    def ffn(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The output [T, D] of the FFN (of its experts, weighted) for its normed input [T, D]."""
        out_TD: torch.Tensor = self.module.mlp(x_TD[None])[0]
        return out_TD

    def route(self, x_TD: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """For each FFN the tokens (indices) that it sees and their weights [T, 1]; a dense FFN sees all, unweighted."""
        if not self.experts:
            return [(torch.arange(x_TD.shape[0], device=x_TD.device), None)]
        _, weight_TK, choice_TK = self.module.mlp.gate(x_TD)
        routes: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for expert in range(self.experts):
            token, slot = torch.where(choice_TK == expert)
            routes.append((token, weight_TK[token, slot, None]))
        return routes

    def router_logits(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The router's logits [T, E] for the normed inputs [T, D]."""
        logits_TE: torch.Tensor = nn.functional.linear(x_TD, self.module.mlp.gate.weight)
        return logits_TE

    def ffn_weights(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """gate [F, D], up [F, D] and down [D, F] of one FFN: the parameters, or views of them."""
        return self._ffns()[expert]

    def activations(self, x_TD: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """h [T, F] of one FFN for the normed inputs that it sees."""
        gate_FD, up_FD, _ = self.ffn_weights(expert)
        return self._activate(x_TD, gate_FD, up_FD)

    def factors(self, x_TD: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """What the threshold is held against [T, F], of one FFN."""
        return factors(*self.gates_and_ups(x_TD, expert), self.activation, self.up_threshold)

    def gates_and_ups(self, x_TD: torch.Tensor, expert: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """What the two matrices of one FFN give [T, F] for its normed inputs."""
        gate_FD, up_FD, _ = self.ffn_weights(expert)
        return nn.functional.linear(x_TD, gate_FD), nn.functional.linear(x_TD, up_FD)

    def _ffns(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        mlp = self.module.mlp
        if not self.experts:
            return [(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)]
        # unbound once: the gradient of each expert taken by its index would be as large as all experts
        pairs = zip(mlp.experts.gate_up_proj.unbind(0), mlp.experts.down_proj.unbind(0), strict=True)
        return [(*gate_up.chunk(2), down_DF) for gate_up, down_DF in pairs]

    def _activate(self, x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = nn.functional.linear(x_TD, gate_FD), nn.functional.linear(x_TD, up_FD)
        if self.activation == "swiglu":
            return nn.functional.silu(gate_TF) * up_TF
        return activate(gate_TF, up_TF, self.activation, self.threshold, self.up_threshold)

    def ffn_parts(
        self, x_TD: torch.Tensor, mask: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The parts of `ffn`, FFN by FFN: the tokens that it sees, its h [T, F], its share of the output [T, D].

        Args:
            mask: of an expert and its inputs, the neurons [T, F] that make up the output; h is not masked.
        """
        for expert, (route, weights) in enumerate(zip(self.route(x_TD), self._ffns(), strict=True)):
            (token, weight_T1), (gate_FD, up_FD, down_DF) = route, weights
            seen_TD = x_TD if weight_T1 is None else x_TD[token]
            h_TF = self._activate(seen_TD, gate_FD, up_FD)
            used_TF = h_TF if mask is None else h_TF * mask(expert, seen_TD)
            out_TD = nn.functional.linear(used_TF, down_DF)
            yield token, h_TF, out_TD if weight_T1 is None else out_TD * weight_T1

    def tensors(self) -> Iterator[tuple[Place, torch.Tensor]]:
        """Each of the layer's tensors with its place."""
        for role, path in self.parameters.items():
            yield Place(role, self.index), self.module.get_parameter(path).data
        for expert in range(self.experts):
            for role, weight in zip(FFN, self.ffn_weights(expert), strict=True):
                yield Place(role, self.index, expert), weight.detach()


class Stack:
    """Builds the decoder layers of a checkpoint, one at a time.

    Args:
        checkpoint: where the weights come from.
        device: where they go.
        activation: the FFN's, where it differs from the checkpoint's.
        matrices: dtype of the matrices; under autocast bfloat16 gives the same results as float32 in half the memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        activation: str | None = None,
        matrices: torch.dtype = torch.float32,
    ) -> None:
        self.checkpoint, self.device, self.matrices = checkpoint, device, matrices
        self.activation = activation or checkpoint.spec.activation
        family = FAMILIES[checkpoint.spec.family]
        config_class, self._layer_class, rotary_class = map(
            family.transformers_class, ("Config", "DecoderLayer", "RotaryEmbedding")
        )
        self._parameters = _parameter_paths(family)
        fields = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "auto_map")}
        fields["head_dim"] = checkpoint.spec.head_dim  # YaRN's parameters are computed from it
        try:
            self.config = config_class.from_dict(fields)
            self.config.hidden_act = "silu"  # what sparsify replaces, or the dense model's own
            self.config.ffn_activation = self.activation
            self.config._attn_implementation = "sdpa"
            self.rotary = rotary_class(self.config).to(device)
        except Exception as error:  # its own kinds for each field, and what the rotary embedding trips over
            raise TsconvertError(
                f"{checkpoint.folder / 'config.json'}: transformers refuses it ({reason(error)}); download it again"
            ) from error

    def build(self, index: int, context: int) -> Layer:
        """Layer ``index`` for sequences of ``context`` tokens."""
        with torch.device("meta"):
            module = self._layer_class(self.config, index)
            if self.activation != "swiglu":
                sparsify(module, self.config)
        for role, path in self._parameters.items():
            tensor = read_tensor(self.checkpoint, Place(role, index))
            _assign(module, path, tensor.to(self.device, self.matrices if tensor.dim() > 1 else None))
        spec = self.checkpoint.spec
        if spec.experts:
            self._fill_experts(module.mlp.experts, index)
        module.eval().requires_grad_(False)
        return Layer(index, module, self.activation, self.rotary, self._mask(context), spec.experts, self._parameters)

    def embed(self, rows_NS: torch.Tensor) -> torch.Tensor:
        """The embeddings [N, S, D] of token ids [N, S]; only the rows that occur are read."""
        ids, inverse_NS = rows_NS.unique(return_inverse=True)
        place = Place("token_embd")
        info = self.checkpoint.info(place)
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < info.shape[0]:
            raise TsconvertError(
                f"{self.checkpoint.folder}: the tokenizer gives token {int(ids[-1])} and the model has"
                f" {info.shape[0]} tokens; copy the model's own tokenizer there"
            )
        rows = self.checkpoint.raw(place).reshape(info.shape[0], -1)[ids.numpy()]
        return torch.from_numpy(to_float32(rows.reshape(-1), info.dtype).reshape(len(ids), -1))[inverse_NS]

    def _fill_experts(self, experts: Any, index: int) -> None:
        spec = self.checkpoint.spec
        where: dict[str, Any] = {"device": self.device, "dtype": self.matrices}
        gate_up = torch.empty(spec.experts, 2 * spec.neurons, spec.width, **where)
        down = torch.empty(spec.experts, spec.width, spec.neurons, **where)
        for expert in range(spec.experts):
            gate_up[expert, : spec.neurons] = read_tensor(self.checkpoint, Place("ffn_gate", index, expert))
            gate_up[expert, spec.neurons :] = read_tensor(self.checkpoint, Place("ffn_up", index, expert))
            down[expert] = read_tensor(self.checkpoint, Place("ffn_down", index, expert))
        _assign(experts, "gate_up_proj", gate_up)
        _assign(experts, "down_proj", down)
        if not isinstance(experts, SparseExperts):
            experts.config._experts_implementation = "eager"

    def _mask(self, context: int) -> torch.Tensor | None:
        """None lets the attention be causal by itself; a sliding window within the context needs a mask."""
        window = self.checkpoint.spec.sliding_window
        if window is None or window >= context:
            return None
        ones = torch.ones(context, context, dtype=torch.bool, device=self.device)
        return (ones.tril() & ones.triu(1 - window))[None, None]


def _parameter_paths(family: Family) -> dict[str, str]:
    """Role -> the path of its parameter in transformers' decoder layer; experts and predictors left out."""
    roles = [role for role, name in family.tensors.items() if "{L}" in name and "{E}" not in name]
    return {role: family.name_in_memory(role).partition("{L}.")[2] for role in roles if role not in PREDICTOR}


def _assign(module: nn.Module, path: str, tensor: torch.Tensor) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        module = getattr(module, name)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
