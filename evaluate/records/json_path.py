"""Figures in what the commands print with --json, named by path: `rows.predicted.tokens_per_s`, `density.mean`."""

from collections.abc import Callable, Sequence
from typing import Any

from ...common.errors import TsconvertError

_NAMES = ("mode", "name", "type")
_SUMMARIES: dict[str, Callable[[Sequence[Any]], Any]] = {
    "mean": lambda values: sum(values) / len(values),
    "min": min,
    "max": max,
    "sum": sum,
    "count": len,
}


def figure(result: Any, path: Sequence[str]) -> Any:
    """What stands at ``path``.

    A key leads into a table. In a list an index takes one entry, `mean`, `min`, `max`, `sum` and `count` summarize, and
    another word takes the entry whose mode or name it is, or that key of every entry.

    Raises:
        TsconvertError: there is nothing; the message says what there is.

    Example:
        >>> result = {"rows": [{"mode": "dense", "speed": 2.0}, {"mode": "exact", "speed": 4.0}]}
        >>> figure(result, ["rows", "exact", "speed"]), figure(result, ["rows", "speed", "mean"])
        (4.0, 3.0)
    """
    for step, key in enumerate(path):
        found = _step(result, key)
        if found is None:
            where = ".".join(path[:step]) or "the result"
            raise TsconvertError(f"no {key} in {where}, which has {_choices(result)}")
        result = found
    return result


def _step(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    if not isinstance(value, list | tuple) or not value:
        return None
    if key.isdigit():
        return value[int(key)] if int(key) < len(value) else None
    for entry in value:
        if isinstance(entry, dict) and key in (entry.get(name) for name in _NAMES):
            return entry
    if all(isinstance(entry, dict) and key in entry for entry in value):
        return [entry[key] for entry in value]
    if key in _SUMMARIES and (key == "count" or all(is_number(entry) for entry in value)):
        return _SUMMARIES[key](value)
    return None


def _choices(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(key) for key, entry in value.items() if entry is not None) or "nothing"
    if isinstance(value, list | tuple):
        keys = list(value[0]) if value and isinstance(value[0], dict) else []
        return ", ".join([f"{len(value)} entries", *keys])
    return f"the value {value!r} and nothing below it"


def is_number(value: Any) -> bool:
    """Whether it is an int or a float; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
