"""One decoder layer at a time: transformers' own modules, built without weights and filled from a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..common.errors import TsconvertError, reason
from .checkpoint import Checkpoint
from .families import FAMILIES
from .families.family import Family
from .files.dtypes import to_float32
from .modeling_turbosparse import SparseExperts, activate, factors, sparsify, up_sizes
from .spec import DENSE_ACTIVATIONS, THRESHOLDED, ModelSpec
from .tensor_names import FFN, UP_SCALE, Place, layer_roles, shape_of

# Shape suffixes: N sequences, S tokens a sequence, T = N*S tokens, D model width, F neurons, C attention context.
_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_tensor(checkpoint: Checkpoint, place: Place) -> torch.Tensor:
    """The tensor at ``place`` as float32, in memory of its own."""
    info = checkpoint.info(place)
    flat = torch.frombuffer(bytearray(checkpoint.raw(place)), dtype=_TORCH_DTYPES[info.dtype])
    return flat.reshape(info.shape).float()


@dataclass(frozen=True)
class Rows:
    """Where a tensor lies in a decoder layer: some rows of a parameter."""

    path: str
    rows: slice | None = None


@dataclass
class Layer:
    """A decoder layer in float32: its attention half and its FFN half, apart."""

    index: int
    module: Any
    """transformers' decoder layer."""
    activation: str
    spec: ModelSpec
    rotary: Callable[..., Any]
    """Of the hidden states and positions: transformers' cosines and sines in this layer."""
    mask: torch.Tensor | None
    parameters: Mapping[str, Rows]
    """Role -> its weights in ``module``; experts left out."""
    reader_D: torch.Tensor | None = None
    """What the next norm, which divides the residual stream's scale away, multiplies its dimensions by; None where all
    count as much. In models that norm what a layer adds (Gemma 2, 3) a few dimensions hold nearly all of the stream's
    energy, and hardly count."""

    @property
    def experts(self) -> int:
        """How many; 0 for a dense FFN."""
        return self.spec.experts

    @property
    def threshold(self) -> float:
        """Outputs of relu up to this count as zero."""
        return float(getattr(self._ffn, "threshold", 0.0))

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._ffn.threshold = value

    @property
    def up_threshold(self) -> float:
        """The size up to which an up silences its neuron, under `tswiglu`."""
        return float(getattr(self._ffn, "up_threshold", 0.0))

    @up_threshold.setter
    def up_threshold(self, value: float) -> None:
        self._ffn.up_threshold = value

    @property
    def up_scale(self) -> torch.Tensor | None:
        """The neurons' scales for the sizes of their ups, under `tswiglu`: [F], or [E, F]; None: all 1."""
        scale: torch.Tensor | None = getattr(self._ffn, "up_scale", None)
        return scale

    @up_scale.setter
    def up_scale(self, value: torch.Tensor | None) -> None:
        self._ffn.up_scale = value

    @property
    def _ffn(self) -> Any:
        """The module that has the thresholds."""
        return self.module.mlp.experts if self.experts else self.module.mlp

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.weight("attn_output").device

    def weight(self, role: str) -> torch.Tensor:
        """The weights of a role that is no expert's: a parameter, or rows of one."""
        place = self.parameters[role]
        parameter: torch.Tensor = self.module.get_parameter(place.path)
        return parameter if place.rows is None else parameter[place.rows]

    def norm_weight(self, role: str) -> torch.Tensor | None:
        """What a norm of inputs multiplies by, [D], None where there is no such norm."""
        return self.weight(role) + self.spec.norm_offset if role in self.parameters else None

    def seen(self, down_DF: torch.Tensor) -> torch.Tensor:
        """What the rest of the model sees of down's rows [D, F], up to a factor a token."""
        norm_D = self.norm_weight("ffn_post_norm")
        if self.reader_D is None or norm_D is None:
            return down_DF
        return down_DF * (self.reader_D * norm_D)[:, None]

    def attend(self, x_NSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after attention [N, S, D], and the input of the output projection [N, S, C]."""
        kept: list[torch.Tensor] = []
        attention = self.module.self_attn
        hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        position = torch.arange(x_NSD.shape[1], device=x_NSD.device)[None]
        try:
            out_NSD, _ = attention(
                hidden_states=self._normed("attn_norm", x_NSD),
                position_embeddings=self.rotary(x_NSD, position),
                attention_mask=self.mask,
                position_ids=position,
                cache_position=position[0],  # transformers 5.0's Ministral 3 scales queries by it
            )
        finally:
            hook.remove()
        return x_NSD + self._closed("attn_post_norm", out_NSD), kept[0]

    def attended(self, x_TD: torch.Tensor, context_TC: torch.Tensor) -> torch.Tensor:
        """The residual stream [T, D] after attention, of its input and what goes into the output projection."""
        out_TD: torch.Tensor = self.module.self_attn.o_proj(context_TC)
        return x_TD + self._closed("attn_post_norm", out_TD).float()

    def norm(self, residual_TD: torch.Tensor) -> torch.Tensor:
        """The FFN's input."""
        return self._normed("ffn_norm", residual_TD)

    def _normed(self, role: str, x: torch.Tensor) -> torch.Tensor:
        if role not in self.parameters:
            return x
        normed: torch.Tensor = self.module.get_submodule(self.parameters[role].path.removesuffix(".weight"))(x)
        return normed

    def _closed(self, role: str, out: torch.Tensor) -> torch.Tensor:
        """What half a layer adds to the residual stream, of its output."""
        out, scale = self._normed(role, out), self.spec.residual_scale
        return out if scale == 1 else out * scale

    def ffn(self, x_TD: torch.Tensor) -> torch.Tensor:
        """What the FFN (its experts, weighted) adds to the residual [T, D] for its normed input [T, D]."""
        out_TD: torch.Tensor = self.module.mlp(x_TD[None])[0]
        return self._closed("ffn_post_norm", out_TD)

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

    def gate_up(self, x_TD: torch.Tensor, expert: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """What gate and up give [T, F], for the normed inputs that the FFN sees."""
        gate_FD, up_FD, _ = self.ffn_weights(expert)
        return self._gate_up(x_TD, gate_FD, up_FD)

    def activations(self, x_TD: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """h [T, F] of one FFN for the normed inputs that it sees."""
        return self.activate(*self.gate_up(x_TD, expert), expert)

    def flip(self, signs_F: torch.Tensor, expert: int = 0) -> None:
        """Multiply what up gives, and what down takes, by +1 or -1."""
        _, up_FD, down_DF = self.ffn_weights(expert)
        up_FD.mul_(signs_F[:, None])
        down_DF.mul_(signs_F)
        if "ffn_up_bias" in self.parameters:
            self.weight("ffn_up_bias").mul_(signs_F)

    def factors(self, x_TD: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """What the threshold is held against [T, F], of one FFN; 0 where the up silences the neuron."""
        gate_TF, up_TF = self.gate_up(x_TD, expert)
        factor_TF = factors(gate_TF, up_TF, self.activation)
        return factor_TF * (self.up_sizes(up_TF, expert) > self.up_threshold) if self.up_threshold else factor_TF

    def up_sizes(self, up_TF: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """What the ups' threshold is held against [T, F], of one FFN."""
        return up_sizes(up_TF, self._up_scale(expert))

    def _up_scale(self, expert: int) -> torch.Tensor | None:
        scale = self.up_scale
        return scale[expert] if self.experts and scale is not None else scale

    def _ffns(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        if not self.experts:
            return [(self.weight("ffn_gate"), self.weight("ffn_up"), self.weight("ffn_down"))]
        # unbound once: the gradient of each expert taken by its index would be as large as all experts
        experts = self.module.mlp.experts
        pairs = zip(experts.gate_up_proj.unbind(0), experts.down_proj.unbind(0), strict=True)
        return [(*gate_up.chunk(2), down_DF) for gate_up, down_DF in pairs]

    def _bias(self, role: str) -> torch.Tensor | None:
        return self.weight(role) if role in self.parameters else None

    def _gate_up(
        self, x_TD: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        gate_F, up_F = self._bias("ffn_gate_bias"), self._bias("ffn_up_bias")
        return nn.functional.linear(x_TD, gate_FD, gate_F), nn.functional.linear(x_TD, up_FD, up_F)

    def activate(self, gate_TF: torch.Tensor, up_TF: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """h [T, F] of what gate and up of one FFN gave."""
        scale_F = self._up_scale(expert)
        return activate(gate_TF, up_TF, self.activation, self.threshold, self.up_threshold, scale_F)

    def ffn_parts(
        self, x_TD: torch.Tensor, mask: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The parts of `ffn`, FFN by FFN: the tokens that it sees, its h [T, F], its share of what is added [T, D].

        Args:
            mask: of an expert and its inputs, the neurons [T, F] that make up the output; h is not masked.
        """
        for expert, (route, weights) in enumerate(zip(self.route(x_TD), self._ffns(), strict=True)):
            (token, weight_T1), (gate_FD, up_FD, down_DF) = route, weights
            seen_TD = x_TD if weight_T1 is None else x_TD[token]
            h_TF = self.activate(*self._gate_up(seen_TD, gate_FD, up_FD), expert)
            used_TF = h_TF if mask is None else h_TF * mask(expert, seen_TD)
            out_TD = nn.functional.linear(used_TF, down_DF, self._bias("ffn_down_bias"))
            out_TD = self._closed("ffn_post_norm", out_TD)
            yield token, h_TF, out_TD if weight_T1 is None else out_TD * weight_T1

    def tensors(self) -> Iterator[tuple[Place, torch.Tensor]]:
        """Each of the layer's tensors with its place."""
        for role in self.parameters:
            yield Place(role, self.index), self.weight(role).detach()
        for expert in range(self.experts):
            for role, weight in zip(FFN, self.ffn_weights(expert), strict=True):
                yield Place(role, self.index, expert), weight.detach()
        if self.up_scale is not None:
            yield Place(UP_SCALE, self.index), self.up_scale


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
        self._parameters = _parameter_rows(family, checkpoint.spec)
        fields = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "auto_map")}
        if "head_dim" in family.defaults:
            fields["head_dim"] = checkpoint.spec.head_dim  # YaRN's parameters are computed from it
        fields[family.key("hidden_act")] = next(iter(family.activations))  # the dense model's own, or what is replaced
        try:
            self.config = config_class.from_dict(fields)
            self.config.ffn_activation = self.activation
            # transformers' sdpa leaves the cap out
            self.config._attn_implementation = "eager" if checkpoint.spec.attention_softcap else "sdpa"
            self.rotary = rotary_class(self.config).to(device)
        except Exception as error:  # its own kinds for each field, and what the rotary embedding trips over
            raise TsconvertError(
                f"{checkpoint.folder / 'config.json'}: transformers refuses it ({reason(error)}); download it again"
            ) from error

    def build(self, index: int, context: int) -> Layer:
        """Layer ``index`` for sequences of ``context`` tokens."""
        spec = self.checkpoint.spec
        with torch.device("meta"):
            module = self._layer_class(self.config, index)
            if self.activation not in DENSE_ACTIVATIONS:
                sparsify(module, self.config)
        for path, roles in _by_path(self._parameters).items():
            parts = [read_tensor(self.checkpoint, Place(role, index)) for role in roles]
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            _assign(module, path, tensor.to(self.device, self.matrices if tensor.dim() > 1 else None))
        if spec.experts:
            self._fill_experts(module.mlp.experts, index)
        if spec.up_scaled and self.activation in THRESHOLDED:
            ffn = module.mlp.experts if spec.experts else module.mlp
            ffn.up_scale = read_tensor(self.checkpoint, Place(UP_SCALE, index)).to(self.device)
        module.eval().requires_grad_(False)
        local = spec.sliding_window is not None and index not in spec.full_layers
        mask = self._mask(context, spec.sliding_window if local else None)
        rotary, reader_D = self._rotary(local), self._reader(index)
        return Layer(index, module, self.activation, spec, rotary, mask, self._parameters, reader_D)

    def _reader(self, index: int) -> torch.Tensor | None:
        spec = self.checkpoint.spec
        if spec.norms != "both":
            return None
        place = Place("attn_norm", index + 1) if index + 1 < spec.layers else Place("output_norm")
        return read_tensor(self.checkpoint, place).to(self.device) + spec.norm_offset

    def _rotary(self, local: bool) -> Callable[..., Any]:
        """Cosines and sines of the layers with a window, or of those without, where these differ."""
        if self.checkpoint.spec.local_rope_theta is None:
            return cast("Callable[..., Any]", self.rotary)
        return partial(self.rotary, layer_type="sliding_attention" if local else "full_attention")

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last norm, which the head's input goes through."""
        spec = self.checkpoint.spec
        weight_D = read_tensor(self.checkpoint, Place("output_norm")) + spec.norm_offset
        return torch.nn.functional.rms_norm(hidden, weight_D.shape, weight_D, spec.norm_eps)

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
        rows = self.checkpoint.rows(place, ids.numpy())
        found_ID = torch.from_numpy(to_float32(rows.reshape(-1), info.dtype).reshape(len(ids), -1))
        scale = self.checkpoint.spec.embedding_scale
        return (found_ID if scale == 1 else found_ID * scale)[inverse_NS]

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

    def _mask(self, context: int, window: int | None) -> torch.Tensor | None:
        """None lets the attention be causal by itself; a sliding window within the context needs a mask."""
        eager = self.checkpoint.spec.attention_softcap > 0
        if (window is None or window >= context) and not eager:
            return None
        ones = torch.ones(context, context, dtype=torch.bool, device=self.device)
        seen = (ones.tril() & ones.triu(1 - (window or context)))[None, None]
        return torch.zeros(seen.shape, device=self.device).masked_fill(~seen, -torch.inf) if eager else seen


def _parameter_rows(family: Family, spec: ModelSpec) -> dict[str, Rows]:
    """Role -> its weights in transformers' decoder layer; experts left out."""
    found, used = {}, dict.fromkeys(family.fused, 0)
    for role in (role for role in layer_roles(spec) if role != UP_SCALE):  # no parameter
        whole = family.whole(role)
        path = (whole or family.name_in_memory(role)).partition("{L}.")[2]
        if whole is not None:
            start, used[whole] = used[whole], used[whole] + shape_of(spec, Place(role, 0))[0]
            found[role] = Rows(path, slice(start, used[whole]))
        elif "{E}" not in path:
            found[role] = Rows(path)
    return found


def _by_path(parameters: Mapping[str, Rows]) -> dict[str, list[str]]:
    """Path -> the roles there, from the first row to the last."""
    found: dict[str, list[str]] = {}
    for role, place in parameters.items():
        found.setdefault(place.path, []).append(role)
    return found


def _assign(module: nn.Module, path: str, tensor: torch.Tensor) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        module = getattr(module, name)
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
