"""Reading a Hugging Face checkpoint: safetensors files, mapped, checked against the model spec before use.

Every tensor is found by its place (tensor_names.py), whatever layout the file has; nothing is read until it
is asked for.
"""

import json
import mmap
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError, label, shown
from . import tensor_names
from .integrity import INFINITE_BITS, Looks
from .spec import ModelSpec, read_config, spec_of
from .tensor_names import Place

_MOST_DIMENSIONS = 8
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_HEADER_LIMIT_BYTES = 100_000_000  # as in the safetensors library
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor's bytes lie: ``start`` and ``size_bytes`` within ``file``."""

    name: str
    file: Path
    dtype: str
    """`F32`, `F16` or `BF16`."""
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class Checkpoint:
    """A checkpoint folder whose tensors are all there, have the right shapes and lie within their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_config(folder)
        self.spec: ModelSpec = spec_of(self.config, folder / "config.json")
        self._maps: dict[Path, mmap.mmap] = {}
        self._infos = self._find()
        self.looks = Looks({place: info.dtype for place, info in self._infos.items()}, self.raw)

    def info(self, place: Place) -> TensorInfo:
        """What is known of the tensor at ``place`` without reading it."""
        return self._infos[place]

    def __contains__(self, place: Place) -> bool:
        return place in self._infos

    @property
    def places(self) -> list[Place]:
        """Every tensor of the folder, predictors included, in the order of the model."""
        return list(self._infos)

    def raw(self, place: Place) -> npt.NDArray[np.uint8]:
        """The bytes of the tensor at ``place``, as a view of the mapped file."""
        info = self._infos[place]
        return np.frombuffer(self._mapped(info.file), np.uint8, info.size_bytes, info.start)

    def prefetch(self, layer: int) -> None:
        """Let the kernel read the tensors of ``layer`` ahead, in the background: pages of the file, no other memory."""
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for place, info in self._infos.items():
            if place.layer == layer:
                start = info.start // mmap.PAGESIZE * mmap.PAGESIZE
                self._mapped(info.file).madvise(mmap.MADV_WILLNEED, start, info.start + info.size_bytes - start)

    def array(self, place: Place) -> npt.NDArray[np.float32]:
        """The tensor at ``place`` as float32 of its shape (a copy, but for F32 files)."""
        info = self._infos[place]
        return to_float32(self.raw(place), info.dtype).reshape(info.shape)

    @property
    def size_bytes(self) -> int:
        """Of all tensors."""
        return sum(info.size_bytes for info in self._infos.values())

    @property
    def has_predictors(self) -> bool:
        """Predictors lie inside the checkpoint, as in TurboSparse's releases."""
        return Place("fc1", 0, 0 if self.spec.experts else None) in self._infos

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over spec and every tensor's bytes: what predictors, profiles and files say they were made from."""
        self.looks.start()
        whole = blake3.blake3(self.spec.identity.encode())
        for place, info in self._infos.items():
            whole.update(f"{place} {info.dtype} {info.shape} ".encode() + self.looks[place].digest)
        return whole.hexdigest()

    def require_finite(self) -> None:
        """Look at every value, before hours are spent on them.

        Raises:
            TsconvertError: a tensor holds NaN or infinity; names file, tensor, how many, and the first row.
        """
        self.looks.start()
        for place, info in self._infos.items():
            if self.looks[place].largest_bits >= INFINITE_BITS[info.dtype]:
                raise not_finite(info.file, info.name, self.array(place))

    def _mapped(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]

    def _find(self) -> dict[Place, TensorInfo]:
        found: dict[Place, TensorInfo] = {}
        unknown: list[TensorInfo] = []
        parts = _name_patterns(self.spec)
        for file in shard_files(self.folder):
            for info in read_header(file).values():
                places = _places_of(info, self.spec, parts)
                if not places and not tensor_names.IGNORED.fullmatch(info.name):
                    unknown.append(info)
                for place in places.keys() & found.keys():
                    raise TsconvertError(
                        f"{file}: tensor {label(info.name)} is in {found[place].file.name} already, as"
                        f" {label(found[place].name)}; download the checkpoint again"
                    )
                found.update(places)
        if self.spec.tied:
            found.pop(Place("output"), None)
        for place in tensor_names.model_places(self.spec):
            if place not in found:
                raise TsconvertError(
                    f"{self.folder}: tensor {tensor_names.hf_name(place)} is missing; the checkpoint is incomplete,"
                    " download it again"
                )
            self._check(found[place], tensor_names.shape_of(self.spec, place))
        if unknown:
            info = unknown[0]
            raise TsconvertError(
                f"{info.file}: tensor {label(info.name)} has no place in a {self.spec.family} model;"
                " remove it (an adapter?) or convert the base model"
            )
        order = {place: i for i, place in enumerate(tensor_names.model_places(self.spec))}
        return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), str(item[0]))))

    def _check(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if info.shape != shape:
            raise TsconvertError(
                f"{info.file}: tensor {info.name} has shape {list(info.shape)} where config.json makes it"
                f" {list(shape)}; config and weights belong to different models, download both again"
            )


def open_checkpoint(model: str | Path) -> Checkpoint:
    """The checkpoint that ``model`` names: a folder, an embedded model (`tiny-mistral`), or a hub id.

    Raises:
        TsconvertError: nothing is there, or what is there is incomplete, torn, or of another kind.
    """
    return Checkpoint(find_model(model))


def find_model(model: str | Path) -> Path:
    """The folder behind a path, an embedded model's name or a hub id."""
    from .. import embedded

    folder = Path(model)
    if folder.is_dir():
        return folder
    if str(model) in embedded.NAMES:
        return embedded.folder(str(model))
    if folder.exists():
        raise TsconvertError(f"{model}: a file; give the folder that holds config.json")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(model)):
        known = ", ".join(embedded.NAMES)
        raise TsconvertError(
            f"{model}: no such folder; give a checkpoint folder, a hub id (name/model) or one of {known}"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                str(model), allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"]
            )
        )
    except Exception as error:
        raise TsconvertError(
            f"{model}: no such folder, and the hub gave no such model ({type(error).__name__}); look at the name and"
            " the network, and log in (hf auth login) where a model is gated"
        ) from error


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, each known to exist."""
    index = folder / INDEX
    single = folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return [single]
        raise TsconvertError(
            f"{folder}: no model.safetensors and no {INDEX}; convert .bin weights to safetensors first"
        )
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TsconvertError(f"{index}: not an index with a weight_map; download it again") from None
    for shard in shards:
        name = shard if isinstance(shard, str) else ""
        if not 0 < len(name.encode("utf-8", "replace")) < 256 or Path(name).name != name:
            raise TsconvertError(
                f"{index}: {shown(shard)} is no file name within the folder; do not trust this checkpoint"
            )
        if not (folder / shard).is_file():
            raise TsconvertError(f"{folder / shard}: shard is missing (named in {INDEX}); download it again")
    return [folder / shard for shard in shards]


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The header of a safetensors file, each tensor's extent checked against the file's size.

    The layout is the safetensors library's: u64 length, JSON, data.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT_BYTES):
            raise TsconvertError(f"{file}: not a safetensors file, or cut off in its header; download it again")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_once)
            header.pop("__metadata__", None)
            infos = {name: _tensor_info(file, name, entry, 8 + length) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise TsconvertError(f"{file}: the safetensors header is damaged; download it again") from None
    _check_extents(file, infos, size)
    return infos


def _check_extents(file: Path, infos: dict[str, TensorInfo], size: int) -> None:
    for info in infos.values():
        if info.start + info.size_bytes > size:
            missing = info.start + info.size_bytes - size
            raise TsconvertError(
                f"{file}: cut off, tensor {label(info.name)} lacks {missing} bytes at the end; download it again"
            )
    ordered = sorted((info for info in infos.values() if info.size_bytes), key=lambda info: info.start)
    for one, other in pairwise(ordered):
        if one.start + one.size_bytes > other.start:
            raise TsconvertError(
                f"{file}: tensors {label(one.name)} and {label(other.name)} overlap; download it again"
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose names stands there twice, as the safetensors library wants it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _tensor_info(file: Path, name: str, entry: dict[str, Any], base: int) -> TensorInfo:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise TsconvertError(
            f"{file}: tensor {label(name)} is {str(dtype)[:60]}; save it as one of {', '.join(DTYPE_BYTES)}"
        )
    if len(shape) > _MOST_DIMENSIONS or any(type(n) is not int for n in (*shape, start, end)):
        raise ValueError("no shape and no extent")
    count = 1
    for n in shape:
        count *= n
    if start < 0 or min(shape, default=1) < 0 or end - start != count * DTYPE_BYTES[dtype]:
        raise ValueError("extent and shape differ")
    return TensorInfo(name, file, dtype, shape, base + start, end - start)


def _name_patterns(spec: ModelSpec) -> list[tuple[str, re.Pattern[str]]]:
    patterns = []
    for role, (dense, moe, _) in tensor_names.TABLE.items():
        template = moe if spec.experts else dense
        if template:
            pattern = re.escape(template)
            for name in "LE":
                pattern = pattern.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d{{1,9}})")
            patterns.append((role, re.compile(pattern)))
    return patterns


def _places_of(
    info: TensorInfo, spec: ModelSpec, patterns: list[tuple[str, re.Pattern[str]]]
) -> dict[Place, TensorInfo]:
    for role, pattern in patterns:
        if match := pattern.fullmatch(info.name):
            groups = match.groupdict()
            layer = int(groups["L"]) if "L" in groups else None
            expert = int(groups["E"]) if "E" in groups else None
            inside = (layer is None or layer < spec.layers) and (expert is None or expert < spec.experts)
            return {Place(role, layer, expert): info} if inside else {}
    return _fused_places(info, spec) if spec.experts else {}


def _fused_places(info: TensorInfo, spec: ModelSpec) -> dict[Place, TensorInfo]:
    """The experts' places within the tensors that hold all of them (transformers 5's own layout)."""
    match = re.fullmatch(r"model\.layers\.(\d{1,9})\..*", info.name)
    layer = int(match[1]) if match else spec.layers
    if layer >= spec.layers:
        return {}
    if info.name == tensor_names.FUSED_ROUTER.format(L=layer):
        return {Place("router", layer): info}
    if info.name == tensor_names.FUSED_GATE_UP.format(L=layer):
        roles: tuple[str, ...] = ("ffn_gate", "ffn_up")
    elif info.name == tensor_names.FUSED_DOWN.format(L=layer):
        roles = ("ffn_down",)
    else:
        return {}
    shape = tensor_names.shape_of(spec, Place(roles[0], layer, 0))
    if info.shape != (spec.experts, shape[0] * len(roles), shape[1]):
        raise TsconvertError(
            f"{info.file}: tensor {info.name} has shape {list(info.shape)} where config.json makes it"
            f" {[spec.experts, shape[0] * len(roles), shape[1]]}; config and weights belong to different models,"
            " download both again"
        )
    part = info.size_bytes // (spec.experts * len(roles))
    slots = [(expert, role) for expert in range(spec.experts) for role in roles]
    return {
        Place(role, layer, expert): TensorInfo(info.name, info.file, info.dtype, shape, info.start + i * part, part)
        for i, (expert, role) in enumerate(slots)
    }


def not_finite(file: Path, name: str, values: npt.NDArray[np.float32]) -> TsconvertError:
    """The refusal of a tensor with NaN or infinity."""
    bad = ~np.isfinite(values).reshape(-1, values.shape[-1])
    row = int(np.argmax(bad.any(axis=1)))
    return TsconvertError(
        f"{file}: tensor {name} holds {int(bad.sum())} values that are NaN or infinite, the first in row"
        f" {row}; the weights are damaged or training diverged, go back to a sound checkpoint"
    )


def to_float32(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Bytes of a safetensors tensor as flat float32; exact for all three types."""
    if dtype == "F32":
        return raw.view(np.float32) if raw.ctypes.data % 4 == 0 else raw.copy().view(np.float32)
    aligned = raw if raw.ctypes.data % 2 == 0 else raw.copy()
    if dtype == "F16":
        return aligned.view(np.float16).astype(np.float32)
    return (aligned.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_float32(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.uint8]:
    """float32 as the bytes of a safetensors tensor, rounded to nearest even."""
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    if dtype == "F32":
        return flat.view(np.uint8)
    if dtype == "F16":
        return flat.astype(np.float16).view(np.uint8)
    bits = flat.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = np.where(np.isnan(flat), (bits >> 16) | 0x40, rounded)
    return rounded.astype(np.uint16).view(np.uint8)
