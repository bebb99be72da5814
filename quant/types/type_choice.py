"""The block type of each tensor: by the mix or an override, or another one where blocks do not divide the rows."""

import fnmatch
import re
from collections import defaultdict
from collections.abc import Sequence

from ...common.errors import TsconvertError
from ...model.files.gguf import ggml
from . import mixes

_LAYER = re.compile(r"blk\.(\d+)\.")


def known_type(name: str) -> str:
    """The type called ``name``, in any case, that weights can be stored in.

    Raises:
        TsconvertError: there is none.
    """
    upper = name.upper()
    if upper in ggml.weight_types():
        return upper
    raise TsconvertError(f"{name!r} is no type that weights can have; choose one of {', '.join(ggml.weight_types())}")


class TypeChoice:
    """Chooses types, and remembers where it could not keep to what was asked.

    Tensors of one kind must be asked for in the order of the layers, as llama-quantize goes through them: some mixes
    give the first ones of a kind more bits, and an override does not count as one.

    Args:
        default: a mix (`Q4_K_M`) or a type, for the weight matrices.
        predictor: the type of the predictors' matrices.
        overrides: (pattern, type), the first match wins; a pattern is a regular expression that is searched in the
            tensor's GGUF name, or a shell pattern that fits the whole of it.
        model: what the mix's rules depend on.
        pure: all matrices alike, whatever the mix's rules say.
        output: the type of the head: `output.weight`, or under a mix's rules the embedding where that is the head too.
        embedding: the type of `token_embd.weight`. Both go before ``overrides``, as in llama-quantize.
    """

    def __init__(
        self,
        default: str,
        predictor: str,
        overrides: Sequence[tuple[str, str]] = (),
        model: mixes.Model | None = None,
        *,
        pure: bool = False,
        output: str | None = None,
        embedding: str | None = None,
    ) -> None:
        self.default, self.predictor = mixes.mix_named(default), known_type(predictor)
        self.overrides = [(pattern, known_type(name)) for pattern, name in overrides]
        self.model, self.pure = model, pure or model is None
        self.output, self.embedding = (known_type(name) if name is not None else None for name in (output, embedding))
        self.engine: dict[str, str] = {}
        """Kind of tensor (`ffn_down_t`) -> the type that the target's engine needs there, whatever the default is."""
        self._used: set[str] = set()
        self._seen: dict[str, int] = defaultdict(int)
        self._fallbacks: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)

    def matrix(self, name: str, columns: int) -> str:
        """The type of the weight matrix ``name``.

        Raises:
            TsconvertError: it needs an importance matrix and there is none.
        """
        kind = name.split(".")[-2]
        chosen = self._override(name) or self.engine.get(kind) or self._by_mix(name, columns)
        return self._with_importance(name, self._fitting(name, columns, chosen))

    def predictor_matrix(self, name: str, columns: int) -> str:
        """The type of the predictor's matrix ``name``.

        Raises:
            TsconvertError: it needs an importance matrix, which predictors never have.
        """
        type_name = self._fitting(name, columns, self._override(name) or self.predictor)
        if ggml.needs_importance(type_name):
            raise TsconvertError(
                f"{name}: {type_name} needs an importance matrix, and a predictor has none; choose another type"
            )
        return type_name

    def notes(self) -> list[str]:
        """Notes for the user on the choices.

        Raises:
            TsconvertError: an override fits no matrix: a typing error would otherwise go unseen.
        """
        for pattern, _ in self.overrides:
            if pattern not in self._used:
                raise TsconvertError(
                    f"--tensor-type {pattern!r} fits none of this file's matrices; the names are like"
                    " blk.0.ffn_gate.weight, and --dry-run --json lists them"
                )
        for option, asked in (("--output-tensor-type", self.output), ("--token-embedding-type", self.embedding)):
            if asked is not None and option not in self._used:
                raise TsconvertError(f"{option}: this file has no such tensor of its own; leave it out")
        return [
            f"{len(found)} tensors with rows of {columns} are stored as {found[0][1]}, because {asked} stores"
            f" {ggml.TYPES[asked].weights} weights together ({found[0][0]}{', ...' if len(found) > 1 else ''})"
            for (asked, columns), found in self._fallbacks.items()
        ]

    def _by_mix(self, name: str, columns: int) -> str:
        if self.model is None or self.pure:
            return mixes.MIXES.get(self.default, self.default)
        kind, layer = mixes.kind_of(name), _LAYER.match(name)
        # with experts, llama-quantize takes the layer of an FFN's tensor from its name and does not count
        named = self.model.experts > 1 and kind.startswith("ffn") and self.default not in mixes.LOW and layer
        index = int(layer[1]) if named and layer else self._seen[kind]
        self._seen[kind] += 1
        return mixes.choose_type(self.default, kind, columns, index, self.model, stacked="_exps." in name)

    def is_fixed(self, name: str) -> bool:
        """Whether the user named the type of the matrix ``name``."""
        return self._override(name) is not None

    def _override(self, name: str) -> str | None:
        head = self.output is not None and name == "output.weight"
        if head or (self.embedding is not None and name == "token_embd.weight"):
            self._used.add("--output-tensor-type" if head else "--token-embedding-type")
            return self.output if head else self.embedding
        for pattern, type_name in self.overrides:
            if _matches(pattern, name):
                self._used.add(pattern)
                return type_name
        mixed = not self.pure and mixes.MIXES.get(self.default, self.default) not in mixes.FLOATS
        tied = self.model is not None and self.model.tied and mixed
        if self.output is not None and tied and name == "token_embd.weight":
            self._used.add("--output-tensor-type")
            return self.output
        return None

    def _fitting(self, name: str, columns: int, type_name: str) -> str:
        stored = mixes.fitting_type(type_name, columns)
        if stored != type_name:
            self._fallbacks[type_name, columns].append((name, stored))
        return stored

    def _with_importance(self, name: str, type_name: str) -> str:
        given = self.model is not None and self.model.importance
        if not given and mixes.wants_importance(self.default, name, type_name):
            raise TsconvertError(
                f"{name}: {self.default} makes it {type_name}, which needs an importance matrix; make one with"
                " `tsconvert imatrix` and give --imatrix, or choose another type"
            )
        return type_name


def _matches(pattern: str, name: str) -> bool:
    if fnmatch.fnmatchcase(name, pattern):
        return True
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return False
