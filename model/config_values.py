"""Numbers of a config.json, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, shown

_LARGEST = 1e30  # any real number of a config


def real(config: Mapping[str, Any], where: Path, field: str) -> float:
    """The number at ``field``. ``where`` is named in errors."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise TsconvertError(f"{where}: {field} is {shown(value)}; it must be a number")
    return float(value)


def whole(config: Mapping[str, Any], where: Path, field: str) -> int:
    """The whole number of at least 1 at ``field``."""
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TsconvertError(f"{where}: {field} is {shown(value)}; it must be a whole number of at least 1")
    return value
