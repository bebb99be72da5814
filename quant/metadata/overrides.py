"""`--metadata KEY=VALUE`: keys of the user's own, in the type that the key has."""

from collections.abc import Callable
from typing import Any

from ...common.errors import TsconvertError
from ..gguf.values import Value


def with_overrides(
    metadata: dict[str, Value], architecture: str, pairs: tuple[tuple[str, str], ...]
) -> dict[str, Value]:
    """``metadata`` with the user's keys; a key that is there keeps its type.

    Raises:
        TsconvertError: a key that the tensors decide, an array, or a value that does not fit the key's type.
    """
    out = dict(metadata)
    for key, given in pairs:
        if key == "general.architecture" or key.startswith((f"{architecture}.", "split.")):
            raise TsconvertError(f"--metadata {key}: this key follows from the model; leave it out")
        old = out.get(key)
        if old is not None and old.array:
            raise TsconvertError(f"--metadata {key}: this key is an array, which cannot be set; leave it out")
        kind, _, rest = given.partition(":")
        if kind in _PARSERS and (old is None or old.kind == kind):
            out[key] = Value(kind, _parsed(key, kind, rest))
        else:
            kind = old.kind if old is not None else "str"
            out[key] = Value(kind, _parsed(key, kind, given))
    return out


def _boolean(value: str) -> bool:
    return {"true": True, "false": False}[value.lower()]


_PARSERS: dict[str, Callable[[str], Any]] = {"u32": int, "i32": int, "f32": float, "bool": _boolean, "str": str}


def _parsed(key: str, kind: str, value: str) -> Any:
    try:
        parsed = _PARSERS[kind](value)
        Value(kind, parsed).encode()
    except Exception:
        raise TsconvertError(f"--metadata {key}: {value!r} is no {kind}; give one") from None
    return parsed
