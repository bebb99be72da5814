"""The config.json of the Hugging Face checkpoint that a GGUF file for llama.cpp was made of, from its keys."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ....common.errors import TsconvertError, shown
from .file import GGUF, GgufFile
from .keys import Keys
from .tensor import stored_dtype

ROPE_FREQS = "rope_freqs.weight"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_SAME_FREQUENCY = 1e-4  # relative; a file's divisors are float32
Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What llama.cpp calls a kind of model, and how its files differ from the checkpoints."""

    more: Callable[[Keys, Config], Config]
    """From the keys, and what all models have: `model_type` and the other fields of this one."""


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture of a file.

    Raises:
        TsconvertError: it is none that tsconvert makes a checkpoint of.
    """
    name = file.architecture
    if file.magic == GGUF and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if file.magic != GGUF or name == "turbosparse":
        raise TsconvertError(
            f"{file.path}: is a sparse model for running, its neurons in another order; give the Hugging Face folder"
            " that it was made of"
        )
    raise TsconvertError(
        f"{file.path}: architecture {shown(name)}; of GGUF files tsconvert converts {', '.join(ARCHITECTURES)}, choose"
        " one of those"
    )


def config_of(file: GgufFile) -> Config:
    """What config.json says of the model in ``file``.

    Raises:
        TsconvertError: the architecture is not known, a key is missing or makes no sense, or says what a checkpoint of
            that kind cannot.
    """
    keys, kind = Keys(file), architecture_of(file)
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
        "rope_parameters": rope_parameters(keys, head_dim),
        "dtype": _DTYPES[_dtype_of(file)],
        **_tokens(file),
    }
    config = common | kind.more(keys, common)
    return {name: value for name, value in config.items() if value is not None}


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
    return {"bos_token_id": given["bos"], "eos_token_id": eos[0] if len(eos) == 1 else eos or None}


def rope_parameters(keys: Keys, head_dim: int) -> Config:
    """transformers' `rope_parameters`, as llama.cpp's load_hparams reads the keys.

    Raises:
        TsconvertError: transformers has no name for what the keys say.
    """
    theta = keys.number("rope.freq_base", 10000.0)
    kind = str(keys.get("rope.scaling.type", "linear"))
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 0.0)) or 1.0
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    divisors = keys.file.tensors.get(ROPE_FREQS)
    if divisors is not None:
        kind, factor = ("llama3", 1.0) if kind == "none" or factor == 1 else (kind, factor)
    found: Config = {"rope_theta": theta, "rope_type": "default"}
    if kind == "llama3" and divisors is not None:
        found |= llama3_parameters(keys, divisors.to_float32(), theta, head_dim)
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


def _uncovered(keys: Keys, what: str) -> TsconvertError:
    return TsconvertError(
        f"{keys.file.path}: {what}, for which checkpoints have no words; give the Hugging Face folder that the file"
        " was made of"
    )


def llama3_parameters(keys: Keys, divisors_H: npt.NDArray[np.float32], theta: float, head_dim: int) -> Config:
    """Llama 3's parameters of which the tensor of divisors was made (transformers' _compute_llama3_parameters).

    1 / divisor is 1 / factor + b (1 - 1 / factor), and b is (original / wavelength - low) / (high - low), kept within 0
    and 1: of `low`, `high` and `original` one may be chosen, and `low` is 1 in all models.
    """
    half = head_dim // 2
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


def _llama(keys: Keys, config: Mapping[str, Any]) -> Config:
    _require_whole_rope(keys, config)
    experts = keys.whole("expert_count", 0)
    if experts:
        used = keys.whole("expert_used_count")
        return {
            "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": experts,
            "num_experts_per_tok": used,
        }  # fmt: skip
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
        "attention_bias": _has_bias(keys, "attn_") or None, "mlp_bias": _has_bias(keys, "ffn_") or None,
    }  # fmt: skip


def _has_bias(keys: Keys, part: str) -> bool:
    return any(name.startswith(f"blk.0.{part}") and name.endswith(".bias") for name in keys.file.tensors)


def _require_whole_rope(keys: Keys, config: Mapping[str, Any]) -> None:
    if keys.whole("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise _uncovered(keys, f"rope.dimension_count is {keys.whole('rope.dimension_count')}")


ARCHITECTURES: dict[str, Architecture] = {"llama": Architecture(more=_llama)}
"""`general.architecture` -> what is known of it."""
