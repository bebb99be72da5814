"""Tiny seeded transformers models, and GGUF files of them written by gguf-py: the runner's reference and its input."""

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM

WIDTH, NEURONS, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, CONTEXT = 64, 96, 3, 4, 2, 16, 101, 96
EXPERTS, RANK = 4, 24


@dataclass
class Tiny:
    """A model, what became of its weights, and how to write it down."""

    model: torch.nn.Module
    activation: str
    window: int | None
    weights: dict = field(default_factory=dict)

    @property
    def experts(self) -> int:
        return getattr(self.model.config, "num_local_experts", 0)

    def logits(self, tokens, fcs=None, thresholds=None, pre_norm=False, linear=False) -> np.ndarray:
        """Logits [T, V]; with ``fcs``, of the neurons that those predictors name."""
        for number, layer in enumerate(self.model.model.layers if self.activation != "swiglu" else ()):
            if self.experts:
                layer.mlp.experts.predictors = fcs and [
                    (fcs[number][0][e], fcs[number][1][e], thresholds[number][e])
                    if np.isfinite(thresholds[number][e]) else None
                    for e in range(self.experts)
                ]  # fmt: skip
            else:
                known = fcs is not None and fcs.get(number) is not None
                layer.mlp.predictor = (*fcs[number], thresholds[number]) if known else None
                layer.mlp.pre_norm, layer.mlp.linear = pre_norm, linear
                layer.mlp.fired, layer.mlp.missed, layer.mlp.predicted = [], [], []
        with torch.no_grad():
            return self.model(torch.tensor([list(tokens)])).logits[0].numpy()


def mask_of(predictor, x, linear=False):
    """1 where fc2 . relu(fc1 . x) reaches the threshold; (fc1, fc2, threshold) or None, which masks nothing."""
    if predictor is None:
        return 1.0
    fc1, fc2 = (torch.from_numpy(matrix) for matrix in predictor[:2])
    hidden = x @ fc1.T
    return ((hidden if linear else torch.relu(hidden)) @ fc2.T >= predictor[2]).float()


class SparseMLP(torch.nn.Module):
    """relu(gate) * relu(up), or relu(gate) * up; with a predictor, only of the neurons that it names."""

    def __init__(self, dense, activation, norm):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = dense.gate_proj, dense.up_proj, dense.down_proj
        self.activation, self.predictor, self.pre_norm, self.linear = activation, None, False, False
        self.fired, self.missed, self.predicted = [], [], []
        norm.register_forward_pre_hook(lambda module, args: setattr(self, "residual", args[0]))

    def forward(self, x):
        up = self.up_proj(x)
        h = torch.relu(self.gate_proj(x)) * (torch.relu(up) if self.activation == "drelu" else up)
        mask = mask_of(self.predictor, self.residual if self.pre_norm else x, self.linear)
        self.fired.append(float((h * mask != 0).float().mean()))
        self.missed.append(float((h * (1 - mask) != 0).float().mean()))
        self.predicted.append(float(mask.mean()) if self.predictor else 0.0)
        return self.down_proj(h * mask)


class SparseExperts(torch.nn.Module):
    """The same for Mixtral's fused experts."""

    def __init__(self, dense):
        super().__init__()
        self.gate_up_proj, self.down_proj = dense.gate_up_proj, dense.down_proj
        self.predictors = None

    def forward(self, x_TD, choice_TK, share_TK):
        out_TD = torch.zeros_like(x_TD)
        for t in range(x_TD.shape[0]):
            for k in range(choice_TK.shape[1]):
                e = int(choice_TK[t, k])
                gate, up = (self.gate_up_proj[e] @ x_TD[t]).chunk(2)
                h = torch.relu(gate) * torch.relu(up)
                h = h * (mask_of(self.predictors[e], x_TD[t]) if self.predictors else 1.0)
                out_TD[t] += share_TK[t, k] * (self.down_proj[e] @ h)
        return out_TD


def make_tiny(family="mistral", activation="swiglu", window=None, tied=False, **changes) -> Tiny:
    torch.manual_seed(7)
    shape = {
        "hidden_size": WIDTH, "intermediate_size": NEURONS, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5, "sliding_window": window, "tie_word_embeddings": tied, "initializer_range": 0.2,
        "attn_implementation": "eager", **changes,
    }  # fmt: skip
    if family == "mixtral":
        config = MixtralConfig(**shape, num_local_experts=EXPERTS, num_experts_per_tok=2)
        model = MixtralForCausalLM(config)
    else:
        model = MistralForCausalLM(MistralConfig(**shape))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif "gate_up" in name or "down_proj" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    for layer in model.model.layers:
        if activation != "swiglu" and family == "mixtral":
            layer.mlp.experts = SparseExperts(layer.mlp.experts)
        elif activation != "swiglu":
            layer.mlp = SparseMLP(layer.mlp, activation, layer.post_attention_layernorm)
    for parameter in model.parameters():  # F16 files then hold the very same numbers
        parameter.data = parameter.data.half().float()
    return Tiny(model.eval(), activation, window)


def permute(weight, heads):
    """llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def predictors(tiny: Tiny, seed=3) -> dict:
    """Random predictors per layer (and expert): fc1 [.., R, D], fc2 [.., F, R]."""
    rng = np.random.default_rng(seed)
    lead = (tiny.experts,) if tiny.experts else ()
    draw = lambda *shape: rng.standard_normal((*lead, *shape)).astype(np.float16).astype(np.float32)  # noqa: E731
    return {layer: (draw(RANK, WIDTH), draw(NEURONS, RANK)) for layer in range(LAYERS)}


def layer_tensors(tiny: Tiny, layer: int, transposed: bool) -> dict[str, np.ndarray]:
    block = tiny.model.model.layers[layer]
    attention, mlp = block.self_attn, block.mlp
    number = lambda parameter: parameter.detach().numpy()  # noqa: E731
    found = {
        "attn_norm": number(block.input_layernorm.weight),
        "ffn_norm": number(block.post_attention_layernorm.weight),
        "attn_q": permute(number(attention.q_proj.weight), HEADS),
        "attn_k": permute(number(attention.k_proj.weight), KV_HEADS),
        "attn_v": number(attention.v_proj.weight),
        "attn_output": number(attention.o_proj.weight),
    }
    if tiny.experts:
        gate_up, down = number(mlp.experts.gate_up_proj), number(mlp.experts.down_proj)
        found["ffn_gate_inp"] = number(mlp.gate.weight)
        found["ffn_gate_exps"], found["ffn_up_exps"] = gate_up[:, :NEURONS], gate_up[:, NEURONS:]
        found["ffn_down_t_exps" if transposed else "ffn_down_exps"] = down.swapaxes(1, 2) if transposed else down
    else:
        found["ffn_gate"], found["ffn_up"] = number(mlp.gate_proj.weight), number(mlp.up_proj.weight)
        down = number(mlp.down_proj.weight)
        found["ffn_down_t" if transposed else "ffn_down"] = down.T if transposed else down
    return found


def write_gguf(
    tiny,
    path,
    target,
    dtype="F32",
    fcs=None,
    thresholds=None,
    keys=None,
    skip=(),
    through=None,
    overrides=None,
    extra=None,
) -> Path:
    """Write ``tiny`` as `sparse`, `llama.cpp` or `powerinfer`.

    ``through`` rounds weights to a block type first; ``overrides`` replaces whole-number keys, None drops one;
    ``extra`` are more tensors, by their whole names.
    """
    arch = {"sparse": "turbosparse", "llama.cpp": "llama", "powerinfer": "bamboo"}[target]
    if target == "powerinfer" and tiny.activation == "reglu":
        arch = "llama"
    writer = gguf.GGUFWriter(path, arch)
    config = tiny.model.config
    whole = {
        "context_length": CONTEXT, "embedding_length": config.hidden_size, "block_count": LAYERS,
        "feed_forward_length": NEURONS, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM, "rope.dimension_count": HEAD_DIM, "vocab_size": VOCAB,
        "attention.sliding_window": tiny.window, "expert_count": tiny.experts or None,
        "expert_used_count": 2 if tiny.experts else None, "format_version": 1 if target == "sparse" else None,
    }  # fmt: skip
    for name, value in (whole | (overrides or {})).items():
        if value is not None:
            writer.add_uint32(f"{arch}.{name}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", config.rope_parameters["rope_theta"])
    if target == "sparse":
        writer.add_string(f"{arch}.activation", tiny.activation)
        if thresholds is not None:
            writer.add_array(f"{arch}.predictor.threshold", [float(t) for t in np.ravel(thresholds)])
    if target == "powerinfer" and thresholds is not None:
        writer.add_float32("powerinfer.sparse_threshold", float(thresholds))
    for key, value in (keys or {}).items():
        add = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, list: writer.add_array}
        add[type(value)](key, value)
    by_inputs = "turbosparse.attention.output_share" in (keys or {})
    add_tensors(writer, tiny, target != "llama.cpp", by_inputs, dtype, fcs, skip, through)
    for name, value in (extra or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if target == "powerinfer":
        with path.open("r+b") as stream:
            stream.write(b"PWRI")
    return path


def add_tensors(writer, tiny, transposed, by_inputs, dtype, fcs, skip, through):
    from tsconvert.model.files.gguf import ggml
    from tsconvert.quant.types.encoding import quantize

    number = lambda parameter: parameter.detach().numpy()  # noqa: E731
    tensors = {
        "token_embd": number(tiny.model.model.embed_tokens.weight),
        "output_norm": number(tiny.model.model.norm.weight),
    }
    if not tiny.model.config.tie_word_embeddings:
        tensors["output"] = number(tiny.model.lm_head.weight)
    for layer in range(LAYERS):
        found = layer_tensors(tiny, layer, transposed)
        if by_inputs:
            found["attn_output_t"] = found.pop("attn_output").T
        tensors |= {f"blk.{layer}.{name}": value for name, value in found.items()}
        if fcs and fcs.get(layer) is not None:
            suffix = "_exps" if tiny.experts else ""
            tensors[f"blk.{layer}.fc1{suffix}"], tensors[f"blk.{layer}.fc2{suffix}"] = fcs[layer]
    for name, value in tensors.items():
        if name in skip:
            continue
        plain = value.ndim == 1 or name.endswith("gate_inp") or value.shape[-1] % ggml.TYPES[dtype].weights
        kind = "F32" if plain else dtype
        if through and value.ndim > 1:
            rough = quantize(np.ascontiguousarray(value).reshape(-1, value.shape[-1]), through)
            value = ggml.dequantize(rough, through, value.shape)
        raw = quantize(np.ascontiguousarray(value).reshape(-1, value.shape[-1]), kind)
        raw = raw.reshape(*value.shape[:-1], -1) if kind != "F32" else np.ascontiguousarray(value, np.float32)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])


@pytest.fixture(scope="session")
def tiny():
    """`make_tiny`, each variant made once."""
    made = {}

    def get(family="mistral", activation="swiglu", **changes):
        key = (family, activation, repr(sorted(changes.items())))
        if key not in made:
            made[key] = make_tiny(family, activation, **changes)
        return made[key]

    return get


@pytest.fixture(scope="session")
def gguf_of():
    """`write_gguf`."""
    return write_gguf


@pytest.fixture(scope="session")
def make_predictors():
    """`predictors`."""
    return predictors


@pytest.fixture
def prompt():
    return np.random.default_rng(5).integers(0, VOCAB, 40).tolist()
