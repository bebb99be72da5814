"""The keys of a GGUF file's architecture, checked as they are read."""

from typing import Any

import numpy as np

from ....common.errors import TsconvertError, shown
from .file import GgufFile


class Keys:
    """The metadata keys of a file's architecture, named without what they all begin with.

    Raises:
        TsconvertError: by each method, of a value that is none of its kind.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key, whatever it is."""
        return self.file.metadata.get(f"{self.file.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 0."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._bad(name, value, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self._bad(name, value, "a number")
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """A number of a sane size above 0."""
        value = self.number(name, default)
        if not 1e-6 <= value <= 1e6:
            raise self._bad(name, value, "0.000001 to 1000000")
        return value

    def _bad(self, name: str, value: Any, wanted: str) -> TsconvertError:
        key = f"{self.file.architecture}.{name}"
        return TsconvertError(
            f"{self.file.path}: key {key} is {shown(value)}, it must be {wanted}; write the file again"
        )
