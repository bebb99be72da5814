"""What commands found, as --json prints it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any


class Result:
    """A dataclass whose fields are the JSON's keys."""

    def to_json(self) -> dict[str, Any]:
        """Every field as plain values; paths as text."""
        return asdict(self, dict_factory=plain)  # type: ignore[call-overload, no-any-return]


def plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `asdict`: paths become text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in pairs}
