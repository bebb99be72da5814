"""Which block type each tensor gets: the default, the overrides by name, and F16 where blocks do not fit the rows."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Sequence

from ..convert.errors import TsconvertError
from . import ggml

FALLBACK = "F16"


def known_type(name: str) -> str:
    """The type called ``name``, in any case, that weights can be encoded in without an importance matrix.

    Raises:
        TsconvertError: there is none, or it needs an importance matrix.
    """
    upper = name.upper()
    usable = [kind for kind in ggml.weight_types() if not ggml.needs_importance(kind)]
    if upper in usable:
        return upper
    if upper in ggml.weight_types():
        raise TsconvertError(f"{upper} needs an importance matrix, which this version cannot take; choose another type")
    raise TsconvertError(f"{name!r} is no type that weights can have; choose one of {', '.join(usable)}")


class TypeChoice:
    """Chooses types, and remembers where it could not keep to what was asked.

    Args:
        default: of the weight matrices.
        predictor: of the predictors' matrices.
        overrides: (pattern, type), the first match wins; a pattern is a regular expression that is searched in the
            tensor's GGUF name, or a shell pattern that fits the whole of it.
    """

    def __init__(self, default: str, predictor: str, overrides: Sequence[tuple[str, str]] = ()) -> None:
        self.default, self.predictor = known_type(default), known_type(predictor)
        self.overrides = [(pattern, known_type(name)) for pattern, name in overrides]
        self.engine: dict[str, str] = {}
        """Kind of tensor (`ffn_down_t`) -> the type that the target's engine needs there, whatever the default is."""
        self._used: set[str] = set()
        self._fallbacks: dict[tuple[str, int], list[str]] = defaultdict(list)

    def matrix(self, name: str, columns: int) -> str:
        """The type of the weight matrix ``name``."""
        kind = name.split(".")[-2]
        return self._fitting(name, columns, self._override(name) or self.engine.get(kind, self.default))

    def predictor_matrix(self, name: str, columns: int) -> str:
        """The type of the predictor's matrix ``name``."""
        return self._fitting(name, columns, self._override(name) or self.predictor)

    def notes(self) -> list[str]:
        """What the user should know about the choices.

        Raises:
            TsconvertError: an override fits no matrix: a typing error would otherwise go unseen.
        """
        for pattern, _ in self.overrides:
            if pattern not in self._used:
                raise TsconvertError(
                    f"--tensor-type {pattern!r} fits none of this file's matrices; the names are like"
                    " blk.0.ffn_gate.weight, and --dry-run --json lists them"
                )
        return [
            f"{len(names)} tensors with rows of {columns} are stored as {FALLBACK}, because {asked} stores"
            f" {ggml.TYPES[asked].weights} weights together ({names[0]}{', ...' if len(names) > 1 else ''})"
            for (asked, columns), names in self._fallbacks.items()
        ]

    def _override(self, name: str) -> str | None:
        for pattern, type_name in self.overrides:
            if _fits(pattern, name):
                self._used.add(pattern)
                return type_name
        return None

    def _fitting(self, name: str, columns: int, type_name: str) -> str:
        if columns % ggml.TYPES[type_name].weights == 0:
            return type_name
        self._fallbacks[type_name, columns].append(name)
        return FALLBACK


def _fits(pattern: str, name: str) -> bool:
    if fnmatch.fnmatchcase(name, pattern):
        return True
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
