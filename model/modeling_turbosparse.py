"""A causal language model of transformers with a sparse FFN: dReLU, relu(gate) * relu(up), ReGLU, relu(gate) * up, or
SwiGLU or GeGLU with thresholds, the model's own where that is large.

TurboSparse (arXiv 2406.05955). This file is saved with every converted checkpoint and stands alone, so that
``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)`` needs transformers and nothing else.

The classes are made when they are asked for, out of transformers' own: `TurboSparseQwen3ForCausalLM` is
`Qwen3ForCausalLM` with the FFNs' activation replaced, and `TurboSparseQwen3Config` is its configuration, whose
`model_type` is `turbosparse_qwen3`. Everything else is the base model's.
"""

from typing import Any

import torch
import transformers
from packaging import version
from torch import nn
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

# Shape suffixes: T tokens, D model width, F neurons, E experts, K experts per token.
_PREFIX, _MODEL, _CONFIG = "TurboSparse", "ForCausalLM", "Config"


def activate(
    gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str, threshold: float = 0.0, up_threshold: float = 0.0,
    up_scale_F: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The FFN's activations h [T, F]: `drelu` relu(gate) * relu(up), `reglu` relu(gate) * up, `tswiglu` SwiGLU,
    `tgeglu` GeGLU.

    What relu gives up to ``threshold`` is zero (FATReLU, arXiv 2402.13516). Under the last two an activation is zero
    where its own size is at most ``threshold``, or that of its up, times ``up_scale_F``, at most ``up_threshold``. The
    dense ones that they replace, for comparison: `swiglu` silu(gate) * up, `geglu` gelu(gate) * up by tanh.
    """
    if activation == "swiglu":
        return nn.functional.silu(gate_TF) * up_TF
    if activation == "geglu":
        return nn.functional.gelu(gate_TF, approximate="tanh") * up_TF
    if activation in ("tswiglu", "tgeglu"):
        h_TF = activate(gate_TF, up_TF, activation[1:])
        h_TF = _kept(h_TF, h_TF.detach().abs(), threshold)
        return _kept(h_TF, up_sizes(up_TF.detach(), up_scale_F), up_threshold) if up_threshold else h_TF
    relu = nn.functional.threshold if threshold else nn.functional.relu
    limits = (threshold, 0.0) if threshold else ()
    if activation == "drelu":
        return relu(gate_TF, *limits) * relu(up_TF, *limits)
    return relu(gate_TF, *limits) * up_TF


def factors(gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str) -> torch.Tensor:
    """What a threshold is held against: the smaller of gate and up, under `reglu` the gate, with SwiGLU and GeGLU the
    size of an activation."""
    if activation == "drelu":
        return gate_TF.minimum(up_TF)
    return gate_TF if activation == "reglu" else activate(gate_TF, up_TF, activation.removeprefix("t")).abs()


def up_sizes(up_TF: torch.Tensor, up_scale_F: torch.Tensor | None) -> torch.Tensor:
    """What an up's threshold is held against under `tswiglu`: its size, times the neuron's scale if there is one."""
    return up_TF.abs() if up_scale_F is None else up_TF.abs() * up_scale_F.to(up_TF.dtype)


def _kept(h_TF: torch.Tensor, size_TF: torch.Tensor, threshold: float) -> torch.Tensor:
    """``h_TF`` where the size is above ``threshold``, else 0: in one pass, by the slope of relu (a comparison in
    bfloat16 and a product with its bits take ten times as long on CPUs)."""
    kept: torch.Tensor = torch.ops.aten.threshold_backward(h_TF, size_TF, threshold)
    return kept


class SparseFFN(nn.Module):
    """down(activate(gate(x), up(x))), with the matrices (and biases) of a dense FFN, gate and up maybe in one."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    gate_up_proj: nn.Linear
    down_proj: nn.Linear
    up_scale: torch.Tensor | None
    """[F], see `activate`."""

    def __init__(
        self, mlp: nn.Module, activation: str, threshold: float = 0.0, up_threshold: float = 0.0,
        up_scale: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.threshold, self.up_threshold = activation, threshold, up_threshold
        self.register_buffer("up_scale", up_scale)
        for name in ("gate_proj", "up_proj", "gate_up_proj", "down_proj"):
            if hasattr(mlp, name):
                setattr(self, name, getattr(mlp, name))

    def gate_up(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What gate and up give, both [..., F]."""
        if hasattr(self, "gate_proj"):
            return self.gate_proj(x), self.up_proj(x)
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return gate, up

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """h [..., F]."""
        return self.activate(*self.gate_up(x))

    def activate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """h [..., F] of what gate and up gave."""
        return activate(gate, up, self.activation, self.threshold, self.up_threshold, self.up_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        out: torch.Tensor = self.down_proj(self.activations(x))
        return out


class SparseExperts(nn.Module):
    """The experts of a layer with the sparse activation; parameters as transformers' own classes hold them."""

    up_scale: torch.Tensor | None
    """[E, F], see `activate`."""

    def __init__(
        self, experts: Any, activation: str, threshold: float = 0.0, up_threshold: float = 0.0,
        up_scale: torch.Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.threshold, self.up_threshold = activation, threshold, up_threshold
        self.register_buffer("up_scale", up_scale)
        self.gate_up_proj, self.down_proj = experts.gate_up_proj, experts.down_proj

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
        del down_DF, token
        gate_TF, up_TF = nn.functional.linear(x_TD, gate_up_FD).chunk(2, dim=-1)
        return self.activate(gate_TF, up_TF, expert)

    def activate(self, gate_TF: torch.Tensor, up_TF: torch.Tensor, expert: int) -> torch.Tensor:
        """h [T, F] of what an expert's gate and up gave."""
        scale_F = None if self.up_scale is None else self.up_scale[expert]
        return activate(gate_TF, up_TF, self.activation, self.threshold, self.up_threshold, scale_F)


def sparsify(layer: Any, config: Any) -> None:
    """Put the sparse FFN in the place of a transformers decoder layer's own."""
    index = int(getattr(layer.self_attn, "layer_idx", 0))
    listed = [getattr(config, name, None) for name in ("ffn_thresholds", "ffn_up_thresholds")]
    own, up = [float(values[index]) if values else 0.0 for values in listed]
    experts = getattr(layer.mlp, "experts", None)
    if experts is not None:
        count, _, neurons = experts.down_proj.shape
        scale = torch.ones(count, neurons) if getattr(config, "ffn_up_scaled", False) else None
        layer.mlp.experts = SparseExperts(experts, config.ffn_activation, own, up, scale)
    else:
        neurons = layer.mlp.down_proj.in_features
        scale = torch.ones(neurons) if getattr(config, "ffn_up_scaled", False) else None
        layer.mlp = SparseFFN(layer.mlp, config.ffn_activation, own, up, scale)


def _config_class(prefix: str, kind: str) -> type:
    """The configuration of the model whose transformers classes begin with ``prefix`` and whose type is ``kind``."""
    lists = dict.fromkeys(("ffn_thresholds", "ffn_up_thresholds"))
    fields = {"ffn_activation": "drelu", **lists, "ffn_up_scaled": False, "model_type": f"turbosparse_{kind}"}
    types = {"ffn_activation": str, **dict.fromkeys(lists, list[float] | None), "ffn_up_scaled": bool}
    about = {"__module__": __name__, "__doc__": f"{prefix} with a sparse FFN.", "__annotations__": types}
    return type(_PREFIX + prefix + _CONFIG, (CONFIG_MAPPING[kind],), fields | about)


def _model_class(prefix: str, kind: str) -> type:
    base: Any = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])

    class Sparse(base):
        config_class = globals().get(_PREFIX + prefix + _CONFIG) or __getattr__(_PREFIX + prefix + _CONFIG)

        def __init__(self, config: Any) -> None:
            since = getattr(config, "transformers_since", None)
            if since and version.parse(transformers.__version__) < version.parse(since):
                raise ImportError(f"{prefix} needs transformers {since}, this is {transformers.__version__}")
            if getattr(config, "attn_logit_softcapping", None) and config._attn_implementation in (None, "sdpa"):
                config._attn_implementation = "eager"  # transformers 5.0's sdpa leaves the cap out
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

    Sparse.__name__ = Sparse.__qualname__ = _PREFIX + prefix + _MODEL
    Sparse.__doc__ = f"{prefix} with a sparse FFN and a language-modelling head."
    mapping = get_checkpoint_conversion_mapping(kind)  # one tensor an expert on disk, transformers fuses them
    if mapping:
        register_checkpoint_conversion_mapping(f"turbosparse_{kind}", mapping, overwrite=True)
    return Sparse


def __getattr__(name: str) -> Any:
    """`TurboSparse...ForCausalLM` and `TurboSparse...Config`, made of transformers' classes."""
    make = {_MODEL: _model_class, _CONFIG: _config_class}
    end = next((end for end in make if name.startswith(_PREFIX) and name.endswith(end)), "")
    prefix = name.removeprefix(_PREFIX).removesuffix(end)
    configs = (f"{prefix}Text{_CONFIG}", prefix + _CONFIG)
    known = {CONFIG_MAPPING_NAMES[kind]: kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    kinds = [known[config] for config in configs if config in known]
    if not end or not kinds:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}: transformers {transformers.__version__} has no"
            f" {prefix + _MODEL}; a newer one may"
        )
    made = globals()[name] = make[end](prefix, kinds[0])
    return made
