"""The rotary parameters of a config.json, read as transformers' modeling_rope_utils.py reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, shown
from .config_values import real

_REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
_ORIGINAL = "original_max_position_embeddings"
_POSITIVE = (_ORIGINAL, "beta_fast", "beta_slow")
_FROM_ZERO = ("attention_factor", "mscale", "mscale_all_dim")


def read_rope(
    config: Mapping[str, Any], where: Path, theta: float, context: int
) -> tuple[float, Mapping[str, Any] | None]:
    """Theta, and the parameters of the scaling where there is one.

    Args:
        where: named in errors.
        theta: the family's, where none is given.
        context: `max_position_embeddings`.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(parameters, Mapping):
        raise TsconvertError(f"{where}: rope_parameters is no object; download the file again")
    theta = real({"rope_theta": theta, **_only(config, "rope_theta"), **parameters}, where, "rope_theta")
    _refuse(parameters, where)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise TsconvertError(
            f"{where}: rope_type is {shown(kind)}; tsconvert covers default, linear, llama3 and yarn,"
            " choose such a model"
        )
    scaling = {**parameters, "rope_type": kind}
    if kind != "linear":
        scaling |= _only(config, _ORIGINAL)  # transformers gives the one at top level priority
    if kind == "llama3":
        scaling.setdefault(_ORIGINAL, context)
    if kind == "yarn" and scaling.get("factor", 0) is None:
        scaling["factor"] = context / real({_ORIGINAL: context, **scaling}, where, _ORIGINAL)
    _check_numbers(scaling, where, kind)
    return theta, scaling


def _only(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {field: config[field]} if field in config else {}


def _refuse(parameters: Mapping[str, Any], where: Path) -> None:
    nested = [key for key, value in parameters.items() if isinstance(value, Mapping)]
    if nested:
        raise TsconvertError(
            f"{where}: rope_parameters differ by layer type ({shown(nested)}); tsconvert covers one rotary embedding"
            " for all layers, choose such a model"
        )
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise TsconvertError(
            f"{where}: partial_rotary_factor is {shown(parameters['partial_rotary_factor'])}; it changes what the model"
            " computes and tsconvert does not cover it, choose a model where it is 1"
        )


def _check_numbers(scaling: Mapping[str, Any], where: Path, kind: str) -> None:
    nullable = ("beta_fast", "beta_slow", *_FROM_ZERO)
    given = [name for name in (*_POSITIVE, *_FROM_ZERO) if name in scaling]
    for field in (*_REQUIRED[kind], *given):
        if field in nullable and scaling[field] is None:
            continue
        value = real(scaling, where, field)
        if value < 0 or (value == 0 and field not in _FROM_ZERO):
            raise TsconvertError(f"{where}: {field} is {value:g}; it must be above 0")
    if kind == "yarn" and not scaling.get("truncate", True):
        raise TsconvertError(
            f"{where}: truncate is {shown(scaling['truncate'])}; GGUF has no key for YaRN's bounds untruncated,"
            " choose a model where it is True"
        )
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise TsconvertError(
            f"{where}: high_freq_factor is {scaling['high_freq_factor']:g}; it must be above low_freq_factor,"
            f" {scaling['low_freq_factor']:g}"
        )
