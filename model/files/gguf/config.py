"""The config.json of the Hugging Face checkpoint that a GGUF file for llama.cpp was made of, from its keys."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ....common.errors import TsconvertError, shown
from ...families import FAMILIES
from ...families.family import Family
from ..kinds import gguf_kind
from .file import GGUF, SPARSE, GgufFile
from .keys import Keys
from .tensor import stored_dtype

ROPE_FREQS, ROPE_LONG, ROPE_SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAME_FREQUENCY = 1e-4  # relative; a file's divisors are float32
Config = dict[str, Any]


Builder = Callable[[Keys, Config], Config]
"""From the keys, and what all models have: `model_type` and the other fields of one architecture."""


def builder_of(file: GgufFile) -> Builder:
    """What makes the config.json of a file's architecture.

    Raises:
        TsconvertError: it is none that tsconvert makes a checkpoint of.
    """
    name = file.architecture
    if file.magic == GGUF and name in BUILDERS:
        return BUILDERS[name]
    if file.magic != GGUF or name == SPARSE:
        raise TsconvertError(
            f"{file.path}: is a sparse model for running (run, serve, bench and eval take it), its neurons in another"
            " order; give the Hugging Face folder that it was made of"
        )
    if other := gguf_kind(name, str(file.metadata.get("general.type", ""))):
        raise TsconvertError(f"{file.path}: is {other}")
    raise TsconvertError(
        f"{file.path}: architecture {shown(name)}; of GGUF files tsconvert converts {', '.join(BUILDERS)}, choose"
        " one of those"
    )


def config_of(file: GgufFile) -> Config:
    """What config.json says of the model in ``file``.

    Raises:
        TsconvertError: the architecture is not known, a key is missing or makes no sense, or says what a checkpoint of
            that kind cannot.
    """
    keys, kind = Keys(file), builder_of(file)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise TsconvertError(f"{file.path}: tensor token_embd.weight is missing; download the file again")
    width, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    head_dim = keys.whole("attention.key_length", width // max(1, heads))
    if keys.whole("attention.value_length", head_dim) != head_dim:
        raise TsconvertError(
            f"{file.path}: heads have {head_dim} dimensions in keys and {keys.whole('attention.value_length')} in"
            " values; tsconvert covers models where they are alike, choose one"
        )
    common: Config = {
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": keys.whole("feed_forward_length"),
        "num_hidden_layers": keys.whole("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": _decimal(keys.number("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": rope_parameters(keys, keys.whole("rope.dimension_count", head_dim)),
        "dtype": _DTYPES[_dtype_of(file)],
        **_tokens(file),
    }
    config = common | kind(keys, common)
    kept = {name: value for name, value in config.items() if value is not None}
    return kept | {
        "pad_token_id": config["pad_token_id"]
    }  # some config classes have a default that is none of the file


def _dtype_of(file: GgufFile) -> str:
    found = {stored_dtype(tensor.type_name) for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return found.pop() if len(found) == 1 else "F32"


def _decimal(value: float) -> float:
    """The number that was rounded to float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tokens(file: GgufFile) -> Config:
    given = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "eom")}
    ends = dict.fromkeys(given[name] for name in ("eos", "eot", "eom") if isinstance(given[name], int))
    eos = list(ends)
    return {
        "bos_token_id": given["bos"], "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }  # fmt: skip


def rope_parameters(keys: Keys, rotated: int) -> Config:
    """transformers' `rope_parameters`, as llama.cpp's load_hparams reads the keys.

    Args:
        rotated: dimensions of a head that turn.

    Raises:
        TsconvertError: transformers has no name for what the keys say.
    """
    theta = keys.number("rope.freq_base", 10000.0)
    kind = str(keys.get("rope.scaling.type", "linear"))
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    if ROPE_LONG in keys.file.tensors:
        return _longrope(keys, theta, attention)
    divisors = keys.file.tensors.get(ROPE_FREQS)
    if divisors is not None:
        kind, factor = ("llama3", 1.0) if kind == "none" or factor == 1 else (kind, factor)
    found: Config = {"rope_theta": theta, "rope_type": "default"}
    if kind == "llama3" and divisors is not None:
        found |= llama3_parameters(keys, divisors.to_float32(), theta, rotated)
    elif kind == "linear" and factor != 1:
        found |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        found |= {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": keys.whole(
                "rope.scaling.original_context_length", keys.whole("context_length")
            ),
        }
        if attention != 1:
            found["attention_factor"] = attention * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    elif kind not in ("none", "linear"):
        raise _uncovered(keys, f"rope.scaling.type is {shown(kind)}")
    if kind != "yarn" and attention != 1:
        raise _uncovered(keys, f"rope.scaling.attn_factor is {attention:g} without YaRN")
    if divisors is not None and kind != "llama3":
        raise _uncovered(keys, f"rope.scaling.type is {shown(kind)} beside tensor {ROPE_FREQS}")
    return found


def _longrope(keys: Keys, theta: float, attention: float) -> Config:
    long, short = (keys.file.tensors[name].to_float32() for name in (ROPE_LONG, ROPE_SHORT))
    return {
        "rope_theta": theta, "rope_type": "longrope", "attention_factor": _decimal(attention),
        "long_factor": [_decimal(each) for each in long], "short_factor": [_decimal(each) for each in short],
        "original_max_position_embeddings": keys.whole("rope.scaling.original_context_length"),
    }  # fmt: skip


def _uncovered(keys: Keys, what: str) -> TsconvertError:
    return TsconvertError(
        f"{keys.file.path}: {what}, for which checkpoints have no words; give the Hugging Face folder that the file"
        " was made of"
    )


def llama3_parameters(keys: Keys, divisors_H: npt.NDArray[np.float32], theta: float, rotated: int) -> Config:
    """Llama 3's parameters of which the tensor of divisors was made (transformers' _compute_llama3_parameters).

    1 / divisor is 1 / factor + b (1 - 1 / factor), and b is (original / wavelength - low) / (high - low), kept within 0
    and 1: of `low`, `high` and `original` one may be chosen, and `low` is 1 in all models.
    """
    half = rotated // 2
    if divisors_H.shape != (half,) or not (np.isfinite(divisors_H) & (divisors_H > 1 - _SAME_FREQUENCY)).all():
        raise _uncovered(keys, f"tensor {ROPE_FREQS} has other values than Llama 3's scaling gives")
    factor = round(float(divisors_H.max()), 4)
    turns_H = 1 / (2 * math.pi * theta ** (np.arange(half) / half))
    tried = [(4.0, float(original)) for original in (8192, 4096, 32768, 131072)]
    share_H = (1 / divisors_H.astype(np.float64) - 1 / factor) / max(1 - 1 / factor, 1e-9)
    between = (share_H > 1e-3) & (share_H < 1 - 1e-3)
    if between.sum() > 1:
        slope, start = np.polyfit(turns_H[between], share_H[between], 1)
        high = 1 - 1 / start
        tried.append((round(high, 3), float(round(slope * (high - 1)))))
    for high, original in tried:
        blend_H = np.clip((original * turns_H - 1) / (high - 1), 0, 1)
        if np.allclose((1 - blend_H) / factor + blend_H, 1 / divisors_H, rtol=_SAME_FREQUENCY):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
                "original_max_position_embeddings": int(original),
            }  # fmt: skip
    raise _uncovered(keys, f"tensor {ROPE_FREQS} has other values than Llama 3's scaling gives")


def _llama(keys: Keys, config: Config) -> Config:
    experts = keys.whole("expert_count", 0)
    if experts:
        used = keys.whole("expert_used_count")
        return _named(keys, config, "mixtral") | {"num_local_experts": experts, "num_experts_per_tok": used}
    return _named(keys, config, "llama") | _biases(keys, attention_bias="attn_", mlp_bias="ffn_")


def _qwen3moe(keys: Keys, config: Config) -> Config:
    return _named(keys, config, "qwen3_moe") | {
        "num_experts": keys.whole("expert_count"), "num_experts_per_tok": keys.whole("expert_used_count"),
        "moe_intermediate_size": keys.whole("expert_feed_forward_length"), "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _gemma(keys: Keys, config: Config) -> Config:
    return _named(keys, config, "gemma") | {"hidden_act": "gelu_pytorch_tanh"}


def _gemma2(keys: Keys, config: Config) -> Config:
    return _named(keys, config, "gemma2") | {
        **_gelu(config, large=46),
        "sliding_window": keys.whole("attention.sliding_window", 4096),
        "attn_logit_softcapping": _decimal(keys.number("attn_logit_softcapping", 50.0)) or None,
        "final_logit_softcapping": _decimal(keys.number("final_logit_softcapping", 30.0)) or None,
    }


def _gemma3(keys: Keys, config: Config) -> Config:
    return _named(keys, config, "gemma3_text") | _gelu(config, large=62) | _windows(keys, config, every=6, theta=1e4)


def _gelu(config: Config, large: int) -> Config:
    """What Gemma 2 and 3 have alike; their largest model, of ``large`` layers, scales queries in a way of its own."""
    width, heads, layers = (config[f] for f in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    scalar = width // heads if layers == large else config["head_dim"]
    return {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": scalar}


def _windows(keys: Keys, config: Config, every: int, theta: float) -> Config:
    """A window in all but ``every`` so many-th layer, and a rope without scaling there."""
    layers = range(config["num_hidden_layers"])
    types = ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in layers]
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", theta)}
    return {
        "sliding_window": keys.whole("attention.sliding_window"), "layer_types": types,
        "rope_parameters": {"full_attention": config["rope_parameters"], "sliding_attention": local},
    }  # fmt: skip


def _phi3(keys: Keys, config: Config) -> Config:
    found = _named(keys, config, "phi3", head_dim=False, partial=True)
    original = keys.whole("rope.scaling.original_context_length", config["max_position_embeddings"])
    return found | {"original_max_position_embeddings": original}


def _granite(keys: Keys, config: Config) -> Config:
    names = {
        "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
    }  # fmt: skip
    found = _named(keys, config, "granite", head_dim=False) | _biases(keys, attention_bias="attn_", mlp_bias="ffn_")
    return found | {name: _decimal(keys.number(key)) for name, key in names.items()}


def _olmo2(keys: Keys, config: Config) -> Config:
    if not keys.whole("attention.sliding_window", 0):
        return _named(keys, config, "olmo2", head_dim=False)
    theta = keys.number("rope.freq_base", 10000.0)
    return _named(keys, config, "olmo3", head_dim=False) | _windows(keys, config, every=4, theta=theta)


def _mistral3(keys: Keys, config: Config) -> Config:
    rope, beta = dict(config["rope_parameters"]), keys.number("attention.temperature_scale", 0.0)
    if rope["rope_type"] == "yarn":
        rope |= {
            "beta_fast": keys.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": keys.number("rope.scaling.yarn_beta_slow", 1.0),
        }
        if strength := keys.number("rope.scaling.yarn_log_multiplier", 0.0):
            rope |= {"mscale": 1.0, "mscale_all_dim": strength}
    if beta:
        rope["llama_4_scaling_beta"] = _decimal(beta)
    found = _named(keys, config, "ministral3" if beta else "mistral")
    return found | {"rope_parameters": rope, "sliding_window": None}


def _named(keys: Keys, config: Config, name: str, *, head_dim: bool = True, partial: bool = False) -> Config:
    """The name of a kind of model, once it is certain that the kind can say what the keys do.

    Args:
        head_dim: its config has that key; else heads times their size is the width.
        partial: a part of a head may turn.
    """
    size, rotated = config["head_dim"], keys.whole("rope.dimension_count", config["head_dim"])
    found: Config = {"model_type": name}
    if not head_dim:
        if size * config["num_attention_heads"] != config["hidden_size"]:
            raise _uncovered(keys, f"attention.key_length is {size} of {config['hidden_size']} dimensions")
        found["head_dim"] = None
    if rotated != size:
        if not partial:
            raise _uncovered(keys, f"rope.dimension_count is {rotated}")
        found["partial_rotary_factor"] = rotated / size
        found["rope_parameters"] = {**config["rope_parameters"], "partial_rotary_factor": rotated / size}
    return found


def _biases(keys: Keys, **parts: str) -> Config:
    """Key of config.json -> whether there are biases whose names begin so."""
    names = [name for name in keys.file.tensors if name.startswith("blk.0.") and name.endswith(".bias")]
    return {key: True for key, part in parts.items() if any(name.startswith(f"blk.0.{part}") for name in names)}


def _plain(keys: Keys, config: Config) -> Config:
    """Of a family that differs from Llama by names, biases and how much of a head turns."""
    family = FAMILY_OF[keys.file.architecture]
    partial = "partial_rotary_factor" in family.defaults
    found = _named(keys, config, family.name, head_dim="head_dim" in family.defaults, partial=partial)
    return found | {key: f"blk.0.{roles[0]}.bias" in keys.file.tensors for key, roles in family.biases.items()}


FAMILY_OF: dict[str, Family] = {}
"""`general.architecture` -> the first family that llama.cpp calls so."""
for _family in FAMILIES.values():
    FAMILY_OF.setdefault(_family.gguf.architecture, _family)
BUILDERS: dict[str, Builder] = dict.fromkeys(FAMILY_OF, _plain) | {
    "llama": _llama, "qwen3moe": _qwen3moe, "gemma": _gemma, "gemma2": _gemma2, "gemma3": _gemma3, "phi3": _phi3,
    "granite": _granite, "olmo2": _olmo2, "mistral3": _mistral3,
}  # fmt: skip
"""By `general.architecture`."""
