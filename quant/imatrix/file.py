"""The importance matrix as a file, in llama.cpp's GGUF form: what llama-quantize reads and llama-imatrix writes.

For each matrix there is NAME.in_sum2, the sums of its inputs' squares over tokens, F32 [experts, columns], and
NAME.counts, the tokens, F32 [experts, 1] (tools/imatrix/imatrix.cpp, common/imatrix-loader.cpp). The weight of a
column's error is the mean square of its input. An expert that no token reached counts all columns alike. A file of ours
may also have NAME.kl_slopes, F32 [experts, columns]: what errors in the matrix cost (slopes.py); llama.cpp ignores it.
The older form, imatrix.dat, is read too (common_imatrix_load_legacy).

Shape suffixes: C columns, E experts (1 where there are none).
"""

import struct
from collections.abc import Collection, Mapping, Sequence
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
_SUMS, _COUNTS, _SLOPES = ".in_sum2", ".counts", ".kl_slopes"
_MOST_ENTRIES, _LONGEST_NAME = 1 << 20, 1 << 10  # of imatrix.dat
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
    slopes: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Matrix -> what errors in each column cost, [E, C]; empty where that was not measured."""
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
        if len(importance_EC) == 1 and importance_EC.size == expected[0] * expected[1]:
            importance_EC = importance_EC.reshape(expected)  # imatrix.dat has one count for all experts
        if importance_EC.shape != expected:
            raise TsconvertError(
                f"{self.path}: {name} has importances {list(importance_EC.shape)} where the model needs"
                f" {list(expected)}; make the matrix from this model"
            )
        return importance_EC

    def slopes_for(self, name: str, shape: tuple[int, ...], present: Collection[str]) -> npt.NDArray[np.float32]:
        """The slopes [E, C] of a tensor; those of one that holds several matrices' rows add up.

        Args:
            name: its GGUF name.
            shape: [rows, columns], or [experts, rows, columns].
            present: the names of all of the file's matrices.

        Raises:
            TsconvertError: there are none, or of another shape.
        """
        parts = [name]
        if name not in self.slopes and "attn_qkv" in name:
            parts = [name.replace("attn_qkv", kind) for kind in ("attn_q", "attn_k", "attn_v")]
        elif "ffn_up" in name and name.replace("ffn_up", "ffn_gate") not in present:
            parts = [name, name.replace("ffn_up", "ffn_gate")]
        found = [self.slopes[part] for part in parts if part in self.slopes]
        expected = shape[0] if len(shape) == 3 else 1, shape[-1]
        if not found or any(slopes_EC.shape != expected for slopes_EC in found):
            raise TsconvertError(
                f"{self.path}: does not say what errors of {name} cost; measure it on this model with `tsconvert"
                " imatrix --slopes 4K`"
            )
        total_EC: npt.NDArray[np.float32] = np.sum(found, axis=0, dtype=np.float32)
        return total_EC

    def by_slopes(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
        """As `for_tensor`; where there is no entry, as for embeddings and heads, the slopes say what columns weigh."""
        found, slopes_EC = self.for_tensor(name, shape), self.slopes.get(name)
        if found is not None or slopes_EC is None:
            return found
        return (slopes_EC / max(float(slopes_EC.mean()), 1e-30)).astype(np.float32)


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
    tensors += [TensorPlan.of(name + _SLOPES, slopes_EC) for name, slopes_EC in sorted(matrix.slopes.items())]
    write_files([GgufPlan(path=out, metadata=metadata, tensors=tensors)], title="imatrix")


def load_imatrix(path: Path, fingerprint: str | None = None) -> ImportanceMatrix:
    """Read an importance matrix, this program's or llama-imatrix's.

    Args:
        fingerprint: the model's that it is for; a file that names another one is refused.

    Raises:
        TsconvertError: no importance matrix, damaged, of another model, or with values that are not finite.
    """
    if _is_legacy(path):
        return _load_legacy(path)
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
        slopes={name.removesuffix(_SLOPES): _slopes(file, name) for name in file.tensors if name.endswith(_SLOPES)},
        path=path,
    )


def _slopes(file: GgufFile, name: str) -> npt.NDArray[np.float32]:
    tensor = file.tensors[name]
    slopes_EC = tensor.to_float32() if tensor.type_name == "F32" else np.full((1, 1), np.nan)
    if not (np.isfinite(slopes_EC).all() and (slopes_EC >= 0).all()):
        raise TsconvertError(f"{file.path}: {name} holds no slopes; make the importance matrix again")
    return slopes_EC.reshape(-1, slopes_EC.shape[-1])


def _is_legacy(path: Path) -> bool:
    """Whether a file may be of llama-imatrix's older form: it begins with a number of entries and a name's length."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        first = stream.read(8)
    if len(first) < 8 or first[:4] == b"GGUF":
        return False
    entries, length = struct.unpack("<ii", first)
    return bool(0 < entries < _MOST_ENTRIES and 0 < length < _LONGEST_NAME)


def _load_legacy(path: Path) -> ImportanceMatrix:
    content, at = path.read_bytes(), 4

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        if size < 0 or at > len(content):
            raise TsconvertError(f"{path}: ends within an entry, or is no importance matrix; make it again")
        return content[at - size : at]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    entries: dict[str, Entry] = {}
    for _ in range(struct.unpack("<i", content[:4])[0]):
        name = take(number()).decode("utf-8", "replace")
        calls = number()
        sums = np.frombuffer(take(4 * number()), "<f4").astype(np.float32)
        entries[name] = _sound(path, name, sums, np.array([calls], np.float32))
    chunks = number() if at + 4 <= len(content) else 0
    dataset = take(number()).decode("utf-8", "replace") if at + 4 <= len(content) else ""
    return ImportanceMatrix(entries=entries, datasets=(dataset,) if dataset else (), chunks=max(0, chunks), path=path)


def with_importance(
    tensors: Sequence[TensorPlan], matrix: ImportanceMatrix, mix: str, *, by_slopes: bool = False
) -> tuple[list[TensorPlan], list[str]]:
    """The tensors with what the matrix knows of them, and notes on what it does not.

    Args:
        by_slopes: where there is no entry, slopes say what columns weigh; llama-quantize counts them alike.

    Raises:
        TsconvertError: an entry is of another shape, or is missing where the type needs it.
    """
    found, missing = [], []
    for tensor in tensors:
        quantized = tensor.type_name not in (*FLOATS, "I32")
        known = matrix.by_slopes if by_slopes else matrix.for_tensor
        importance_EC = known(tensor.name, tensor.shape) if quantized else None
        if importance_EC is None and quantized:
            if wants_importance(mix, tensor.name, tensor.type_name):
                by_inputs = "attn_output_t" in tensor.name
                raise TsconvertError(
                    f"{matrix.path}: holds nothing on {tensor.name}, and {tensor.type_name} needs importances; "
                    + ("leave --attention-share out" if by_inputs else "make the matrix from this model")
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
    return _sound(file.path, name, sums, np.round(counts.reshape(-1)))


def _sound(path: Path, name: str, sums: npt.NDArray[np.float32], counts_E: npt.NDArray[np.float32]) -> Entry:
    if not (np.isfinite(sums).all() and np.isfinite(counts_E).all()):
        raise TsconvertError(f"{path}: {name} holds NaN or infinity; make the importance matrix again")
    if (sums < 0).any():
        raise TsconvertError(f"{path}: {name} has sums of squares below zero; make the importance matrix again")
    if sums.size % counts_E.size or (counts_E < 0).any():
        raise TsconvertError(
            f"{path}: {name} has {sums.size} sums for {counts_E.size} counts; make the importance matrix again"
        )
    entry = Entry(sums.reshape(counts_E.size, -1), counts_E)
    largest = float(entry.importance().max())
    if largest > _LARGEST:  # ggml's encoders end the process, or store scales of infinity
        raise TsconvertError(f"{path}: {name} has mean squares up to {largest:g}; make the importance matrix again")
    return entry
