"""The importance matrix as a file, in llama.cpp's GGUF form: what llama-quantize reads and llama-imatrix writes.

For each matrix there is NAME.in_sum2, the sums of its inputs' squares over tokens, F32 [experts, columns], and
NAME.counts, the tokens, F32 [experts, 1] (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp). The weight of a
column's error is the mean square of its input. An expert that no token reached counts all columns alike.

Shape suffixes: C columns, E experts (1 where there are none).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import TsconvertError, shown
from ...model.files.gguf.file import GgufFile
from ..gguf.shards import GgufPlan, write_files
from ..gguf.tensor_plan import TensorPlan
from ..gguf.values import Value, array, text, u32
from ..types.mixes import FLOATS, kind_of, wants_importance

FORMAT_VERSION = 1
_LARGEST = 1e15  # mean square of an input; 65,504 squared is 4e9
_SUMS, _COUNTS = ".in_sum2", ".counts"
_FINGERPRINT, _VERSION = "tsconvert.model_fingerprint", "tsconvert.imatrix.format_version"


@dataclass(frozen=True)
class Entry:
    """The statistics of one matrix's inputs."""

    sums_EC: npt.NDArray[np.float32]
    counts_E: npt.NDArray[np.float32]

    def importance(self) -> npt.NDArray[np.float32]:
        """The weight of each column's error, [E, C], as llama-quantize computes it."""
        seen_E1 = self.counts_E[:, None] > 0
        return np.where(seen_E1, self.sums_EC / np.where(seen_E1, self.counts_E[:, None], 1), 1).astype(np.float32)

    @property
    def missed(self) -> list[int]:
        """The experts that no token reached."""
        return [int(expert) for expert in np.flatnonzero(self.counts_E == 0)]


@dataclass(frozen=True, kw_only=True)
class ImportanceMatrix:
    """Entries by the tensor's GGUF name, and what they were made from."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    """Sequences."""
    chunk_tokens: int = 0
    """Tokens a sequence."""
    model_fingerprint: str | None = None
    """None in other programs' files."""
    path: Path | None = field(default=None, compare=False)

    def keys(self) -> dict[str, Value]:
        """The keys that llama-quantize writes into a file that was made with it."""
        keys = {"quantize.imatrix.file": text(str(self.path))}
        if self.datasets:
            keys["quantize.imatrix.dataset"] = text(self.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks:
            keys["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return keys

    def for_tensor(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
        """The importances [E, C] of a tensor, or None if there is no entry.

        Args:
            name: its GGUF name.
            shape: [rows, columns], or [experts, rows, columns].

        Raises:
            TsconvertError: the entry is of another shape.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        importance_EC = entry.importance()
        expected = shape[0] if len(shape) == 3 else 1, shape[-1]
        if importance_EC.shape != expected:
            raise TsconvertError(
                f"{self.path}: {name} has importances {list(importance_EC.shape)} where the model needs"
                f" {list(expected)}; make the matrix from this model"
            )
        return importance_EC


def save_imatrix(matrix: ImportanceMatrix, out: Path) -> None:
    """Write ``matrix`` to ``out``, whole or not at all."""
    metadata: dict[str, Value] = {
        "general.type": text("imatrix"),
        "imatrix.datasets": array("str", matrix.datasets),
        "imatrix.chunk_count": u32(matrix.chunks),
        "imatrix.chunk_size": u32(matrix.chunk_tokens),
        _VERSION: u32(FORMAT_VERSION),
    }
    if matrix.model_fingerprint is not None:
        metadata[_FINGERPRINT] = text(matrix.model_fingerprint)
    tensors = []
    for name, entry in sorted(matrix.entries.items()):
        tensors.append(TensorPlan.of(name + _SUMS, entry.sums_EC))
        tensors.append(TensorPlan.of(name + _COUNTS, entry.counts_E[:, None]))
    write_files([GgufPlan(path=out, metadata=metadata, tensors=tensors)], title="imatrix")


def load_imatrix(path: Path, fingerprint: str | None = None) -> ImportanceMatrix:
    """Read an importance matrix, this program's or llama-imatrix's.

    Args:
        fingerprint: the model's that it is for; a file that names another one is refused.

    Raises:
        TsconvertError: no importance matrix, damaged, of another model, or with values that are not finite.
    """
    file = GgufFile(path)
    if not is_imatrix(file):
        raise TsconvertError(f"{path}: is no importance matrix; make one with `tsconvert imatrix`")
    version = file.metadata.get(_VERSION, FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise TsconvertError(
            f"{path}: importance matrix of format {shown(version)}, this tsconvert reads {FORMAT_VERSION}; make it"
            " again"
        )
    made_from = file.metadata.get(_FINGERPRINT)
    if fingerprint is not None and made_from not in (None, fingerprint):
        raise TsconvertError(f"{path}: was made from another model; run `tsconvert imatrix` on this one")
    names = {name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)}
    datasets: Any = file.metadata.get("imatrix.datasets", [])
    chunks, chunk_tokens = (file.metadata.get(f"imatrix.chunk_{name}", 0) for name in ("count", "size"))
    if not isinstance(datasets, list) or not isinstance(chunks, int) or not isinstance(chunk_tokens, int):
        raise TsconvertError(f"{path}: the keys imatrix.* are of other types than llama-imatrix writes; make it again")
    return ImportanceMatrix(
        entries={name: _entry(file, name) for name in sorted(names)},
        datasets=tuple(str(item) for item in datasets),
        chunks=chunks,
        chunk_tokens=chunk_tokens,
        model_fingerprint=made_from if isinstance(made_from, str) else None,
        path=path,
    )


def with_importance(
    tensors: Sequence[TensorPlan], matrix: ImportanceMatrix, mix: str
) -> tuple[list[TensorPlan], list[str]]:
    """The tensors with what the matrix knows of them, and notes on what it does not.

    Raises:
        TsconvertError: an entry is of another shape, or is missing where the type needs it.
    """
    found, missing = [], []
    for tensor in tensors:
        quantized = tensor.type_name not in (*FLOATS, "I32")
        importance_EC = matrix.for_tensor(tensor.name, tensor.shape) if quantized else None
        if importance_EC is None and quantized:
            if wants_importance(mix, tensor.name, tensor.type_name):
                raise TsconvertError(
                    f"{matrix.path}: holds nothing on {tensor.name}, and {tensor.type_name} needs importances; make the"
                    " matrix from this model"
                )
            missing += [tensor.name] if kind_of(tensor.name) not in ("token_embd", "output") else []
        found.append(replace(tensor, importance_EC=importance_EC))
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    notes = [f"{matrix.path} holds nothing on {missing[0]}{more}: all their columns count alike"] if missing else []
    names = {tensor.name for tensor in tensors}
    return found, [*notes, *coverage({n: e for n, e in matrix.entries.items() if n in names})]


def coverage(entries: Mapping[str, Entry]) -> list[str]:
    """A sentence for each layer with experts that no token reached."""
    layers: dict[str, tuple[list[int], int]] = {}
    for name, entry in entries.items():
        if entry.missed:
            layers[name.rpartition(".ffn_")[0]] = entry.missed, len(entry.counts_E)
    return [
        f"{layer}: no token of the importance matrix reached expert {', '.join(map(str, missed))} of {count}; their"
        " columns count alike, give it more text"
        for layer, (missed, count) in layers.items()
    ]


def is_imatrix(file: GgufFile) -> bool:
    """Whether a GGUF file holds an importance matrix."""
    return file.metadata.get("general.type") == "imatrix"


def _entry(file: GgufFile, name: str) -> Entry:
    if name + _COUNTS not in file.tensors:
        raise TsconvertError(f"{file.path}: {name} has sums and no counts; make the importance matrix again")
    tensors = [file.tensors[name + suffix] for suffix in (_SUMS, _COUNTS)]
    if any(tensor.type_name != "F32" for tensor in tensors):
        raise TsconvertError(f"{file.path}: {name} is not stored as F32; make the importance matrix again")
    sums, counts = (tensor.to_float32() for tensor in tensors)
    counts_E = np.round(counts.reshape(-1))
    if not (np.isfinite(sums).all() and np.isfinite(counts_E).all()):
        raise TsconvertError(f"{file.path}: {name} holds NaN or infinity; make the importance matrix again")
    if (sums < 0).any():
        raise TsconvertError(f"{file.path}: {name} has sums of squares below zero; make the importance matrix again")
    if sums.size % counts_E.size or (counts_E < 0).any():
        raise TsconvertError(
            f"{file.path}: {name} has {sums.size} sums for {counts_E.size} counts; make the importance matrix again"
        )
    entry = Entry(sums.reshape(counts_E.size, -1), counts_E)
    largest = float(entry.importance().max())
    if largest > _LARGEST:  # ggml's encoders end the process, or store scales of infinity
        raise TsconvertError(
            f"{file.path}: {name} has mean squares up to {largest:g}; make the importance matrix again"
        )
    return entry
