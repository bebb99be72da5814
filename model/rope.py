"""The rotary parameters of a config.json, read as transformers' modeling_rope_utils.py reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, shown
from .config_values import real
from .families.family import Family

_REQUIRED = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": (),
}
_ORIGINAL = "original_max_position_embeddings"
_POSITIVE = (_ORIGINAL, "beta_fast", "beta_slow")
_FROM_ZERO = ("attention_factor", "mscale", "mscale_all_dim")
_TYPES = ("full_attention", "sliding_attention")


def read_rope(config: Mapping[str, Any], where: Path, family: Family, context: int, head_dim: int) -> dict[str, Any]:
    """Theta, the parameters of the scaling where there is one, and what else is not plain, as fields of ModelSpec.

    Args:
        config: with the family's defaults filled in.
        where: named in errors.
        context: `max_position_embeddings`.
    """
    parameters = (
        config.get("rope_scaling") or config.get("rope_parameters") or family.defaults.get("rope_parameters", {})
    )
    if not isinstance(parameters, Mapping):
        raise TsconvertError(f"{where}: rope_parameters is no object; download the file again")
    found: dict[str, Any] = {}
    if family.local_rope_theta is not None:
        parameters, found["local_rope_theta"] = _by_layer(config, parameters, where, family)
    found["rope_theta"] = real({"rope_theta": config["rope_theta"], **parameters}, where, "rope_theta")
    _refuse_nested(parameters, where)
    share = parameters.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
    if share not in (None, 1):
        found["rope_dim"] = _partial(share, where, family, head_dim)
    if beta := parameters.get("llama_4_scaling_beta"):
        found["attention_temperature"] = _temperature(beta, where, family)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    kind = family.rope_aliases.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in family.rope_types:
        *others, last = family.rope_types
        raise TsconvertError(
            f"{where}: rope_type is {shown(kind)}; tsconvert covers {', '.join(others)} and {last}, choose such a model"
        )
    if kind in ("default", "dynamic"):  # dynamic scaling begins beyond the context
        return found
    scaling = {**parameters, "rope_type": kind}
    if kind != "linear":
        scaling |= _only(config, _ORIGINAL)  # transformers gives the one at top level priority
    if kind in ("llama3", "longrope"):
        scaling.setdefault(_ORIGINAL, context)
    if kind in ("yarn", "longrope") and scaling.get("factor", 0) is None:
        scaling["factor"] = context / real({_ORIGINAL: context, **scaling}, where, _ORIGINAL)
    if kind == "longrope":
        scaling.setdefault("factor", context / real(scaling, where, _ORIGINAL))
        _check_factors(scaling, where, found.get("rope_dim", head_dim) // 2)
    _check_numbers(scaling, where, kind)
    return found | {"rope_scaling": scaling}


def _only(config: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {field: config[field]} if field in config else {}


def _by_layer(
    config: Mapping[str, Any], parameters: Mapping[str, Any], where: Path, family: Family
) -> tuple[Mapping[str, Any], float]:
    """The parameters of layers without a window, and theta in those with one, where these differ."""
    full, local = (parameters.get(kind) or {} for kind in _TYPES)
    if not parameters.keys() & set(_TYPES):  # as before transformers 5: a scaling is that of the full layers
        full, local = parameters, _only(config, "rope_local_base_freq")
        local = {"rope_theta": local.get("rope_local_base_freq", family.local_rope_theta)}
    if not isinstance(full, Mapping) or not isinstance(local, Mapping):
        raise TsconvertError(f"{where}: rope_parameters hold no objects; download the file again")
    kind = local.get("rope_type", "default")
    if kind != "default":
        raise TsconvertError(
            f"{where}: rope_type is {shown(kind)} in sliding_attention; tsconvert covers default there, choose such a"
            " model"
        )
    return full, real({"rope_theta": family.local_rope_theta, **local}, where, "rope_theta")


def _partial(share: Any, where: Path, family: Family, head_dim: int) -> int:
    if "partial_rotary_factor" not in family.defaults:
        raise TsconvertError(
            f"{where}: partial_rotary_factor is {shown(share)}; it changes what the model"
            " computes and tsconvert does not cover it, choose a model where it is 1"
        )
    rotated = int(head_dim * real({"partial_rotary_factor": share}, where, "partial_rotary_factor"))
    if rotated % 2 or not 2 <= rotated <= head_dim:
        raise TsconvertError(
            f"{where}: partial_rotary_factor is {shown(share)}, which is {rotated} of {head_dim} dimensions; it must be"
            " an even number of them"
        )
    return rotated


def _temperature(beta: Any, where: Path, family: Family) -> float:
    if not family.temperature:
        raise TsconvertError(
            f"{where}: llama_4_scaling_beta is {shown(beta)}; it does nothing in a {family.name} model, take it out"
        )
    return real({"llama_4_scaling_beta": beta}, where, "llama_4_scaling_beta")


def _check_factors(scaling: Mapping[str, Any], where: Path, count: int) -> None:
    for field in ("short_factor", "long_factor"):
        factors = scaling.get(field)
        numbers = isinstance(factors, list) and all(isinstance(each, int | float) for each in factors)
        if not numbers or len(factors or ()) != count or not all(0 < each < 1e9 for each in factors or ()):
            raise TsconvertError(f"{where}: {field} is {shown(factors)}; it must be {count} numbers above 0")


def _refuse_nested(parameters: Mapping[str, Any], where: Path) -> None:
    nested = [key for key, value in parameters.items() if isinstance(value, Mapping)]
    if nested:
        raise TsconvertError(
            f"{where}: rope_parameters differ by layer type ({shown(nested)}); tsconvert covers one rotary embedding"
            " for all layers, choose such a model"
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
