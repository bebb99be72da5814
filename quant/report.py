"""What export-gguf and quantize say of the files that they wrote."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from ..common.results import Result
from .gguf.shards import GgufPlan
from .sizing.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class FileReport(Result):
    """A model that was written as GGUF."""

    KEYS: ClassVar[tuple[str, ...]] = ("out",)
    """The first keys of the JSON object."""
    out: Path
    """The file, or the first of its shards."""
    size_bytes: int
    tensors: dict[str, str]
    """Type of each tensor, by name."""
    types: dict[str, int]
    """Bytes of all tensors of a type, the most first."""
    files: list[str]
    """All that belong to it, shards and companions."""
    notes: list[str]
    elapsed_s: float
    dry_run: bool
    recipe: Recipe | None = None
    """How the types were chosen for a size."""
    mixes: dict[str, int] | None = None
    """Bytes of the file in each mix, where that was asked."""

    @classmethod
    def of_files(cls, files: Sequence[GgufPlan], companions: Sequence[GgufPlan] = (), **others: Any) -> Self:
        """The report on a model's shards and what stands beside them; the other fields as they are given."""
        tensors = [tensor for file in files for tensor in file.tensors]
        types: Counter[str] = Counter()
        for tensor in tensors:
            types[tensor.type_name] += tensor.size_bytes
        return cls(
            out=files[0].path,
            size_bytes=sum(file.size_bytes for file in files),
            tensors={tensor.name: tensor.type_name for tensor in tensors},
            types=dict(types.most_common()),
            files=[str(file.path) for file in (*files, *companions)],
            **others,
        )

    def to_json(self) -> dict[str, Any]:
        """Every field, those of `KEYS` first; how types were chosen, and sizes of mixes, where that was asked."""
        found = {**super().to_json(), "recipe": self.recipe and self.recipe.to_json()}
        found = {key: value for key, value in found.items() if value is not None or key not in ("recipe", "mixes")}
        return {key: found[key] for key in (*self.KEYS, *found)}

    def _text(self, about: str, *more: str, width: int) -> str:
        """``about`` the file, a line for each type, ``more`` lines, and the notes."""
        verb, counts = "would write" if self.dry_run else "wrote", Counter(self.tensors.values())
        head = f"{verb} {self.out}: {self.size_bytes / 1e6:,.1f} MB {about}"
        types = [
            f"  {name:<{width}} {counts[name]:>5} tensors {size / 1e6:>12,.1f} MB" for name, size in self.types.items()
        ]
        if self.recipe is not None and self.recipe.losses:
            more = (*more, f"  expected divergence {self.recipe.divergence:.3g} nats a token")
        mixes = [f"  {name:<{width}} {size / 1e6:>12,.1f} MB" for name, size in (self.mixes or {}).items()]
        if mixes:
            more = (*more, "sizes of all mixes:", *mixes)
        return "\n".join([head, *types, *more, *(f"note: {note}" for note in self.notes)])
