"""Rotary position scaling in GGUF: keys for linear and YaRN, a tensor of divisors for Llama 3's."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError
from ...model.files.gguf.config import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from ...model.spec import ModelSpec
from ..gguf.values import Value, f32, text, u32

TUNED = ("attn_factor", "yarn_beta_fast", "yarn_beta_slow")
"""Keys of YaRN's parameters that a model may have tuned."""
_BETA_FAST, _BETA_SLOW = 32.0, 1.0


def scaling_keys(spec: ModelSpec, architecture: str, *, reads: tuple[str, ...]) -> dict[str, Value]:
    """The `rope.scaling.*` keys of ``spec``, none for Llama 3's scaling or no scaling.

    Args:
        architecture: the keys' prefix.
        reads: what the reader takes of `TUNED` and of LongRoPE's `type`; llama.cpp's `mistral3` takes all but a plain
            `attn_factor`.

    Raises:
        TsconvertError: the checkpoint sets YaRN parameters that the engine would not take.
    """
    scaling = spec.rope_scaling
    if scaling is None or scaling["rope_type"] == "llama3":
        return {}
    prefix = f"{architecture}.rope.scaling."
    factor = _number(scaling, "factor")
    if scaling["rope_type"] == "longrope":
        original = int(scaling["original_max_position_embeddings"])
        keys = {f"{prefix}type": text("longrope")} if "type" in reads else {}
        return keys | {
            f"{prefix}original_context_length": u32(original),
            f"{prefix}attn_factor": f32(longrope_attention(scaling, factor, original)),
        }
    keys = {f"{prefix}type": text(str(scaling["rope_type"])), f"{prefix}factor": f32(factor)}
    if scaling["rope_type"] == "linear":
        return keys
    original = int(scaling.get("original_max_position_embeddings") or spec.context)
    keys[f"{prefix}original_context_length"] = u32(original)
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    tuned = {
        "attn_factor": (attention_factor(scaling, factor) / usual, 1.0),
        "yarn_beta_fast": (float(scaling.get("beta_fast") or _BETA_FAST), _BETA_FAST),
        "yarn_beta_slow": (float(scaling.get("beta_slow") or _BETA_SLOW), _BETA_SLOW),
    }
    if architecture == "mistral3":  # its own way to say the first; it reads the others
        tuned.pop("attn_factor")
        keys[f"{prefix}yarn_log_multiplier"] = f32(float(scaling.get("mscale_all_dim") or 0.0))
        reads = TUNED
    for name, (value, default) in tuned.items():
        if math.isclose(value, default, rel_tol=1e-6):
            continue
        if name not in reads:
            raise TsconvertError(
                f"config.json: rope_parameters make YaRN's {name} {value:g}, and this engine always takes {default:g};"
                " export with --target sparse"
            )
        keys[prefix + name] = f32(value)
    return keys


def attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor on sine and cosine, as transformers' _compute_yarn_parameters finds it."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])

    def mscale(strength: float) -> float:
        return 0.1 * strength * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(float(scaling["mscale"])) / mscale(float(scaling["mscale_all_dim"]))
    return mscale(1.0)


def longrope_attention(scaling: Mapping[str, Any], factor: float, original: int) -> float:
    """LongRoPE's factor on sine and cosine, as transformers' _compute_longrope_parameters finds it."""
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def frequency_divisors(spec: ModelSpec) -> dict[str, npt.NDArray[np.float32]]:
    """The divisors of the rotary frequencies, [rotated dimensions / 2], by the name of their tensor.

    Llama 3's scaling follows transformers' _compute_llama3_parameters: long wavelengths are divided by the factor,
    short ones kept, those between blended. LongRoPE has two, for contexts beyond the original and within it.
    """
    scaling = spec.rope_scaling
    if scaling is not None and scaling["rope_type"] == "longrope":
        named = {ROPE_LONG: "long_factor", ROPE_SHORT: "short_factor"}
        return {name: np.array(scaling[key], np.float32) for name, key in named.items()}
    if scaling is None or scaling["rope_type"] != "llama3":
        return {}
    factor, rotated = _number(scaling, "factor"), spec.rope_dim or spec.head_dim
    low, high = _number(scaling, "low_freq_factor"), _number(scaling, "high_freq_factor")
    original = _number(scaling, "original_max_position_embeddings")
    exponent = np.arange(0, rotated, 2, dtype=np.float64) / rotated
    wavelength = 2 * np.pi * spec.rope_theta**exponent
    blend = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return {ROPE_FREQS: np.asarray(1.0 / ((1.0 - blend) / factor + blend), np.float32)}


def _number(scaling: Mapping[str, Any], field: str) -> float:
    value = scaling.get(field)
    if not isinstance(value, int | float) or not value > 0:
        raise TsconvertError(f"config.json: rope_parameters.{field} is {value!r}; it must be a positive number")
    return float(value)
