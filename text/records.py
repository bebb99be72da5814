"""The text of a record: a string, or nothing where it is null; any other value is refused, never spelled out."""

from collections.abc import Mapping
from typing import Any

from ..common.errors import TsconvertError, shown


def text_of(record: Any, field: str) -> str | None:
    """The text that a record has in ``field``, None for null.

    Raises:
        TsconvertError: it has no such field, or no text there; the sentence lacks its subject, the record.
    """
    if not isinstance(record, Mapping):
        raise TsconvertError(f"is no JSON object with a field {field!r}; fix it or leave it out")
    if field not in record:
        others = f"but {', '.join(map(str, record))}; name one of those" if record else "and no other; name another"
        raise TsconvertError(f"has no field {field!r}, {others} as field in a mixture file (.toml)")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise TsconvertError(f"has {shown(value)} as {field!r}, which is no text; write text there or leave it out")
    return None if value is None else readable(value)


def readable(text: str) -> str:
    """``text`` with U+FFFD for halves of characters (lone surrogates), which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
