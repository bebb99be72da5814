"""`tsconvert quantize`: a GGUF file in other types, in one pass; what llama-quantize makes of it, tensor for tensor.

Keys, norms, routers, predictors and orders of neurons are copied; matrices get the type that the mix has for them.
"""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError, shown
from ..common.files import refuse_existing
from ..model.files.dtypes import ARRAYS
from ..model.files.gguf import ggml
from ..model.files.gguf.file import GGUF, SPARSE, GgufFile, GgufTensor
from ..model.files.integrity import not_finite
from .config import COPY, QuantizeConfig
from .gguf.shards import sharded, write_files
from .gguf.tensor_plan import MatrixRows, Rows, TensorPlan, largest_magnitude
from .gguf.values import Value, Verbatim, u32
from .gguf.writer import Metadata, header
from .imatrix.file import ImportanceMatrix, is_imatrix, load_imatrix, with_importance
from .metadata.model_keys import QUANTIZATION_VERSION, file_type
from .report import FileReport
from .sizing.fit import chosen_types
from .sizing.measured import with_slopes
from .sizing.mix_sizes import mix_sizes
from .sizing.reading import read_shares
from .sizing.recipe import KEY as RECIPE
from .sizing.recipe import Recipe
from .targets.separate_predictors import is_predictor
from .types import mixes
from .types.type_choice import TypeChoice

_OWN_RULES = ("falcon", "glm5-next", "bailingmoe3")  # whose tensors llama-quantize treats in other ways
_DROPPED = ("split.no", "split.count", "split.tensors.count", "general.alignment")
_WHOLE = ("I8", "I16", "I32", "I64", "F64")  # copied as they are
_VALUES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class QuantizeReport(FileReport):
    """The file that was quantized."""

    KEYS = ("out", "source_bytes")
    source_bytes: int

    def __str__(self) -> str:
        files = f" in {len(self.files)} files" if len(self.files) > 1 else ""
        return self._text(f"of {self.source_bytes / 1e6:,.1f} MB{files}", width=7)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """The tensors in their types."""

    tensors: list[TensorPlan]
    most: str = "F16"
    """The type, or mix, of most of them."""
    notes: list[str] = field(default_factory=list)
    recipe: Recipe | None = None
    mixes: dict[str, int] | None = None


def quantize(config: QuantizeConfig) -> QuantizeReport:
    """Write ``config.source`` in other types.

    Returns:
        What the file holds, or would hold with ``dry_run``.

    Raises:
        TsconvertError: the output exists, the source is damaged or no model, is quantized already, needs an importance
            matrix, or a value is NaN or infinite. No file is left then.

    Example:
        >>> quantize(QuantizeConfig(source=Path("m-F16.gguf"), out=Path("m-Q4_K_M.gguf"), type_name="Q4_K_M"))
    """
    start_s = time.monotonic()
    refuse_existing(config.out)
    file = _open(config.source, copies=config.type_name == COPY)
    made_from = file.metadata.get(f"{file.architecture}.source_fingerprint")
    matrix = load_imatrix(config.imatrix, made_from or None) if config.imatrix is not None else None
    if config.by_size:
        if matrix is None and file.architecture == SPARSE:
            raise TsconvertError(
                f"{config.source}: its neurons are in another order than the model's, so what errors cost cannot be"
                " measured on it; run `tsconvert imatrix FOLDER --out FILE.gguf --slopes 4K` on the folder that it was"
                " made of and give --imatrix FILE.gguf"
            )
        matrix = with_slopes(config, matrix, model=config.source, out=config.out, dry_run=config.dry_run)
    metadata: dict[str, Value | Verbatim] = {
        key: Verbatim(file.encoded(key)) for key in file.metadata if key not in _DROPPED
    }
    if config.type_name != COPY:
        metadata.pop(RECIPE, None)
    if config.type_name == COPY:
        done = _Choice(tensors=[_plan(file, tensor, tensor.type_name) for tensor in file.tensors.values()])
    else:
        done = _choose(file, config, matrix, metadata)
        metadata["general.quantization_version"] = u32(QUANTIZATION_VERSION)
        metadata["general.file_type"] = u32(file_type(done.most))
        metadata |= done.recipe.keys() if done.recipe is not None else {}
    tensors, notes = done.tensors, done.notes
    if matrix is not None:
        tensors, more = with_importance(tensors, matrix, done.most, by_slopes=done.recipe is not None)
        notes, metadata = [*notes, *more], {**metadata, **matrix.keys()}
    files = sharded(config.out, metadata, tensors, max_bytes=config.split_max_bytes)
    if not config.dry_run:
        write_files(files, title="quantize", threads=config.threads)
    return QuantizeReport.of_files(
        files, source_bytes=file.size_bytes, notes=notes, elapsed_s=round(time.monotonic() - start_s, 3),
        dry_run=config.dry_run, recipe=done.recipe, mixes=done.mixes,
    )  # fmt: skip


def _open(path: Path, *, copies: bool) -> GgufFile:
    file = GgufFile(path)
    if file.magic != GGUF:
        raise TsconvertError(
            f"{path}: PowerInfer takes few types and computes garbage with the others; export the model again with"
            " --target powerinfer and the --type that it is to have"
        )
    if is_imatrix(file) or f"{file.architecture}.block_count" not in file.metadata:
        raise TsconvertError(f"{path}: holds no model; give a GGUF file of one")
    if file.architecture in _OWN_RULES and not copies:
        raise TsconvertError(f"{path}: {file.architecture} models have rules of their own; use llama-quantize")
    return file


def _model(file: GgufFile, importance: bool) -> mixes.Model:
    def number(key: str, default: int) -> int:
        value = file.metadata.get(f"{file.architecture}.{key}", default)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            name = f"{file.architecture}.{key}"
            raise TsconvertError(f"{file.path}: key {name} is {shown(value)}, no whole number; write the file again")
        return value

    heads = number("attention.head_count", 1)
    return mixes.Model(
        layers=number("block_count", 1),
        heads=heads,
        kv_heads=max(1, number("attention.head_count_kv", heads)),
        experts=number("expert_count", 0),
        tied="output.weight" not in file.tensors,
        importance=importance,
    )


def _choose(file: GgufFile, config: QuantizeConfig, matrix: ImportanceMatrix | None, metadata: Metadata) -> "_Choice":
    """The types that ``config`` asks for; the file's, and the sizes of all mixes, where it asks for none."""
    tensors, matrices = file.tensors.values(), _matrices(file)
    model, by_size = _model(file, matrix is not None), config.by_size or config.recipe is not None
    if config.type_name is None and not by_size:
        plans = [_plan(file, tensor, tensor.type_name) for tensor in tensors]
        sizes = mix_sizes(plans, matrices, model, len(header(metadata, plans)))
        return _Choice(tensors=plans, most=_most(file), mixes=sizes)
    types = TypeChoice(
        config.type_name or "F16", "F32", config.tensor_types, model, pure=config.pure, output=config.output_type,
        embedding=config.embedding_type,
    )  # fmt: skip
    kinds = {name: tensor.type_name for name, tensor in file.tensors.items()}
    kinds |= {name: types.matrix(name, file.tensors[name].shape[-1]) for name in matrices}
    recipe = _by_size(file, config, matrix, metadata, types, kinds) if by_size else None
    kinds |= recipe.types if recipe is not None else {}
    for name in matrices:
        quantized = file.tensors[name].type_name not in mixes.FLOATS
        if quantized and kinds[name] != file.tensors[name].type_name and not config.allow_requantize:
            raise TsconvertError(
                f"{file.path}: {name} is {file.tensors[name].type_name} already, and errors add up; start from an F16,"
                " BF16 or F32 file, or give --allow-requantize"
            )
    plans = [_plan(file, tensor, kinds[tensor.name]) for tensor in tensors]
    notes = [*types.notes(), *([recipe.note] if recipe is not None and recipe.note else [])]
    return _Choice(
        tensors=plans, most=recipe.common if recipe is not None else types.default, notes=notes, recipe=recipe
    )


def _by_size(
    file: GgufFile, config: QuantizeConfig, matrix: ImportanceMatrix | None, metadata: Metadata, types: TypeChoice,
    kinds: dict[str, str],
) -> Recipe:  # fmt: skip
    plans, matrices = [_plan(file, tensor, kinds[name]) for name, tensor in file.tensors.items()], _matrices(file)
    sparse = file.architecture == SPARSE
    shares: dict[str, float] = {}
    if config.target_token_bytes is not None:
        used, experts = (file.metadata.get(f"{file.architecture}.expert_{key}", 1) for key in ("used_count", "count"))
        read = float(str(used)) / float(str(experts))
        silent = sparse and file.metadata.get(f"{SPARSE}.activation") != "swiglu"
        kept = float(str(file.metadata.get(f"{SPARSE}.attention.output_share", 1)))
        shares = read_shares(plans, sparse=silent, density=config.density, experts_read=read, attention_share=kept)
    stored = {name: file.tensors[name].type_name for name in matrices}
    return chosen_types(
        config, plans, matrices, types, matrix, header_bytes=len(header(metadata, plans)),
        engine="sparse" if sparse else "llama.cpp", shares=shares,
        stored={name: kind for name, kind in stored.items() if kind not in mixes.FLOATS},
    )  # fmt: skip


def _matrices(file: GgufFile) -> list[str]:
    """What a mix quantizes, in the order in which llama-quantize goes through them."""
    return [
        name for name in sorted(file.tensors, key=_in_layers)
        if mixes.is_quantized(name, len(file.tensors[name].shape)) and not is_predictor(name)
        and file.tensors[name].type_name not in _WHOLE
    ]  # fmt: skip


def _most(file: GgufFile) -> str:
    types = [file.tensors[name].type_name for name in _matrices(file)]
    return max(types, key=types.count) if types else "F32"


def _in_layers(name: str) -> tuple[int, str]:
    layer = re.match(r"blk\.(\d{1,9})\.", name)
    return int(layer[1]) if layer else -1, name


def _plan(file: GgufFile, tensor: GgufTensor, type_name: str) -> TensorPlan:
    experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64)) // experts
    raw = tensor.raw.reshape(experts, rows, -1)
    source = [_matrix_rows(file, tensor, raw[expert], type_name) for expert in range(experts)]
    return TensorPlan(name=tensor.name, shape=tensor.shape, type_name=type_name, source=source)


def _matrix_rows(file: GgufFile, tensor: GgufTensor, raw_RB: npt.NDArray[np.uint8], type_name: str) -> MatrixRows:
    """One matrix of a GGUF tensor: as it is if it is of float type or stays what it is, otherwise decoded."""
    kind, columns, rows = tensor.type_name, tensor.shape[-1], raw_RB.shape[0]

    def decoded(start: int, stop: int) -> Rows:
        return ggml.dequantize(raw_RB[start:stop].reshape(-1), kind, (stop - start, columns))

    def stored(start: int, stop: int) -> npt.NDArray[Any]:
        return np.require(raw_RB[start:stop].view(ARRAYS.get(kind, np.uint8)), requirements=["C", "A"])

    def check() -> float:
        if kind in _WHOLE:
            return 0.0
        step = max(1, _VALUES // columns)
        ranges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        floats = kind in ARRAYS
        read, dtype = (stored, kind) if floats else (decoded, "F32")
        largest = [largest_magnitude(read(*span), dtype) for span in ranges]
        if not np.isfinite(largest).all():
            raise not_finite(file.path, tensor.name, tensor.to_float32())
        return max(largest)

    kept = kind in ARRAYS or kind == type_name
    return MatrixRows(
        rows=rows, columns=columns, dtype=kind if kept else "F32", read=stored if kept else decoded, check=check
    )
