"""Llama, Mistral and Mixtral with a sparse FFN: dReLU, relu(gate) * relu(up), ReGLU, relu(gate) * up, or SwiGLU with
thresholds, silu(gate) * up where that is large.

TurboSparse (arXiv 2406.05955). This file is saved with every converted checkpoint and stands alone, so that
``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`` needs transformers and nothing else.
"""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

# Shape suffixes: T tokens, D model width, F neurons, E experts, K experts per token.


class TurboSparseLlamaConfig(LlamaConfig):
    """Llama with a sparse FFN."""

    model_type = "turbosparse_llama"
    ffn_activation: str = "drelu"
    ffn_thresholds: list[float] | None = None
    ffn_up_thresholds: list[float] | None = None


class TurboSparseMistralConfig(MistralConfig):
    """Mistral with a sparse FFN."""

    model_type = "turbosparse_mistral"
    ffn_activation: str = "drelu"
    ffn_thresholds: list[float] | None = None
    ffn_up_thresholds: list[float] | None = None


class TurboSparseMixtralConfig(MixtralConfig):
    """Mixtral with sparse experts."""

    model_type = "turbosparse_mixtral"
    ffn_activation: str = "drelu"
    ffn_thresholds: list[float] | None = None
    ffn_up_thresholds: list[float] | None = None


def activate(
    gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str, threshold: float = 0.0, up_threshold: float = 0.0
) -> torch.Tensor:
    """The FFN's activations h [T, F]: `drelu` relu(gate) * relu(up), `reglu` relu(gate) * up, `tswiglu` SwiGLU.

    What relu gives up to ``threshold`` is zero (FATReLU, arXiv 2402.13516). Under `tswiglu` an activation is zero where
    its own size is at most ``threshold``, or that of its up at most ``up_threshold``.
    """
    if activation == "tswiglu":
        h_TF = nn.functional.silu(gate_TF) * up_TF
        return h_TF * ((h_TF.abs() > threshold) & (up_TF.abs() > up_threshold))
    relu = nn.functional.threshold if threshold else nn.functional.relu
    limits = (threshold, 0.0) if threshold else ()
    if activation == "drelu":
        return relu(gate_TF, *limits) * relu(up_TF, *limits)
    return relu(gate_TF, *limits) * up_TF


def factors(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str, up_threshold: float = 0.0) -> torch.Tensor:
    """What a threshold is held against: the smaller of gate and up, under `reglu` the gate, under `tswiglu` the size of
    an activation (0 where ``up_threshold`` silences it)."""
    if activation == "drelu":
        return gate_TF.minimum(up_TF)
    return gate_TF if activation == "reglu" else activate(gate_TF, up_TF, activation, 0.0, up_threshold).abs()


class SparseFFN(nn.Module):
    """down(activate(gate(x), up(x))), without biases."""

    def __init__(
        self, width: int, neurons: int, activation: str, threshold: float = 0.0, up_threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.activation, self.threshold, self.up_threshold = activation, threshold, up_threshold
        self.gate_proj = nn.Linear(width, neurons, bias=False)
        self.up_proj = nn.Linear(width, neurons, bias=False)
        self.down_proj = nn.Linear(neurons, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        h = activate(self.gate_proj(x), self.up_proj(x), self.activation, self.threshold, self.up_threshold)
        out: torch.Tensor = self.down_proj(h)
        return out


class SparseExperts(nn.Module):
    """Mixtral's experts with the sparse activation; parameters as transformers' MixtralExperts holds them."""

    def __init__(
        self, experts: int, width: int, neurons: int, activation: str, threshold: float = 0.0, up_threshold: float = 0.0
    ) -> None:
        super().__init__()
        self.activation, self.threshold, self.up_threshold = activation, threshold, up_threshold
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * neurons, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, neurons))

    def forward(self, x_TD: torch.Tensor, choice_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """The weighted sum [T, D] of what the chosen experts make of ``x_TD``."""
        out_TD = torch.zeros_like(x_TD)
        # unbound once: the gradient of each expert taken by its index would be as large as all experts
        gate_up, down = self.gate_up_proj.unbind(0), self.down_proj.unbind(0)
        for expert in choice_TK.unique().tolist():
            token, slot = torch.where(choice_TK == expert)
            h_TF = self.activations(x_TD[token], gate_up[expert], down[expert], expert, token)
            y_TD = nn.functional.linear(h_TF, down[expert])
            y_TD = y_TD * weight_TK[token, slot, None]
            out_TD = out_TD.index_add(0, token, y_TD.to(out_TD.dtype))
        return out_TD

    def activations(
        self, x_TD: torch.Tensor, gate_up_FD: torch.Tensor, down_DF: torch.Tensor, expert: int, token: torch.Tensor
    ) -> torch.Tensor:
        """h [T, F] of one expert for its inputs; the other arguments are for subclasses in training."""
        del down_DF, expert, token
        gate_TF, up_TF = nn.functional.linear(x_TD, gate_up_FD).chunk(2, dim=-1)
        return activate(gate_TF, up_TF, self.activation, self.threshold, self.up_threshold)


def sparsify(layer: nn.Module, config: LlamaConfig | MistralConfig | MixtralConfig) -> None:
    """Put the sparse FFN in the place of a transformers decoder layer's own."""
    width, neurons, activation = config.hidden_size, config.intermediate_size, config.ffn_activation
    index = int(getattr(layer.self_attn, "layer_idx", 0))
    listed = [getattr(config, name, None) for name in ("ffn_thresholds", "ffn_up_thresholds")]
    thresholds = [float(values[index]) if values else 0.0 for values in listed]
    if hasattr(layer.mlp, "experts"):
        layer.mlp.experts = SparseExperts(config.num_local_experts, width, neurons, activation, *thresholds)
    else:
        layer.mlp = SparseFFN(width, neurons, activation, *thresholds)


class TurboSparseLlamaForCausalLM(LlamaForCausalLM):
    """Llama with a sparse FFN and a language-modelling head."""

    config_class = TurboSparseLlamaConfig

    def __init__(self, config: TurboSparseLlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            sparsify(layer, config)
        self.post_init()


class TurboSparseMistralForCausalLM(MistralForCausalLM):
    """Mistral with a sparse FFN and a language-modelling head."""

    config_class = TurboSparseMistralConfig

    def __init__(self, config: TurboSparseMistralConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            sparsify(layer, config)
        self.post_init()


class TurboSparseMixtralForCausalLM(MixtralForCausalLM):
    """Mixtral with sparse experts and a language-modelling head."""

    config_class = TurboSparseMixtralConfig

    def __init__(self, config: TurboSparseMixtralConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            sparsify(layer, config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SparseExperts):
            for weight in (module.gate_up_proj, module.down_proj):
                nn.init.normal_(weight, std=self.config.initializer_range)


# On disk Mixtral keeps one tensor per expert and matrix; transformers fuses them while loading.
register_checkpoint_conversion_mapping(
    TurboSparseMixtralConfig.model_type, get_checkpoint_conversion_mapping("mixtral"), overwrite=True
)
