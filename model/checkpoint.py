"""Reading a Hugging Face checkpoint: safetensors files, mapped, checked against the model spec before use.

Every tensor is found by its place (tensor_names.py), whatever layout the file has; nothing is read until it is asked
for.
"""

import mmap
import re
from functools import cache
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError, label
from .dtypes import to_float32
from .families import FAMILIES
from .integrity import INFINITE_BITS, TensorScans, not_finite
from .locate import find_model
from .safetensors_files import TensorInfo, read_header, shard_files
from .spec import ModelSpec, read_config, spec_of
from .tensor_names import Place, hf_name, model_places, shape_of

_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")
"""Buffers that old versions of transformers saved."""


class Checkpoint:
    """A checkpoint folder whose tensors are all there, have the right shapes and lie within their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = read_config(folder)
        self.spec: ModelSpec = spec_of(self.config, folder / "config.json")
        self._maps: dict[Path, mmap.mmap] = {}
        self._infos = self._find()
        self.scans = TensorScans({place: info.dtype for place, info in self._infos.items()}, self.raw)

    def info(self, place: Place) -> TensorInfo:
        """The name, file, type, shape and position of the tensor at ``place``."""
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
        """Let the kernel read the tensors of ``layer`` into the page cache in the background."""
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
        """The size of all tensors."""
        return sum(info.size_bytes for info in self._infos.values())

    @property
    def has_predictors(self) -> bool:
        """Whether predictors lie inside the checkpoint, as in TurboSparse's releases."""
        return Place("fc1", 0, 0 if self.spec.experts else None) in self._infos

    @property
    def fingerprint(self) -> str:
        """BLAKE3 over spec and every tensor's bytes; what is made from a model names it."""
        self.scans.start()
        whole = blake3.blake3(self.spec.identity.encode())
        for place, info in self._infos.items():
            whole.update(f"{place} {info.dtype} {info.shape} ".encode() + self.scans[place].digest)
        return whole.hexdigest()

    def require_finite(self) -> None:
        """Scan every value, before hours are spent on them.

        Raises:
            TsconvertError: a tensor holds NaN or infinity; names file, tensor, how many, and the first row.
        """
        self.scans.start()
        for place, info in self._infos.items():
            if self.scans[place].largest_bits >= INFINITE_BITS[info.dtype]:
                raise not_finite(info.file, info.name, self.array(place))

    def _mapped(self, file: Path) -> mmap.mmap:
        if file not in self._maps:
            with file.open("rb") as stream:
                self._maps[file] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]

    def _find(self) -> dict[Place, TensorInfo]:
        found: dict[Place, TensorInfo] = {}
        unknown: list[TensorInfo] = []
        for file in shard_files(self.folder):
            for info in read_header(file).values():
                places = _places_of(info, self.spec)
                if not places and not _IGNORED.fullmatch(info.name):
                    unknown.append(info)
                for place in places.keys() & found.keys():
                    raise TsconvertError(
                        f"{file}: tensor {label(info.name)} is in {found[place].file.name} already, as"
                        f" {label(found[place].name)}; download the checkpoint again"
                    )
                found.update(places)
        if self.spec.tied:
            found.pop(Place("output"), None)
        for place in model_places(self.spec):
            if place not in found:
                raise TsconvertError(
                    f"{self.folder}: tensor {hf_name(self.spec, place)} is missing; the checkpoint is incomplete,"
                    " download it again"
                )
            _require_shape(found[place], shape_of(self.spec, place))
        if unknown:
            info = unknown[0]
            raise TsconvertError(
                f"{info.file}: tensor {label(info.name)} has no place in a {self.spec.family} model;"
                " remove it (an adapter?) or convert the base model"
            )
        order = {place: i for i, place in enumerate(model_places(self.spec))}
        return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), str(item[0]))))


def open_checkpoint(model: str | Path) -> Checkpoint:
    """The checkpoint that ``model`` names: a folder, an embedded model (`tiny-mistral`), or a hub id.

    Raises:
        TsconvertError: nothing is there, or what is there is incomplete, torn, or of another kind.
    """
    return Checkpoint(find_model(model))


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """A regular expression that matches names of the template, with the groups L and E."""
    pattern = re.escape(template)
    for letter in "LE":
        pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d{{1,9}})")
    return re.compile(pattern)


def _places_of(info: TensorInfo, spec: ModelSpec) -> dict[Place, TensorInfo]:
    """The places whose weights the tensor holds, each with its part; empty if the model has no such tensor."""
    family = FAMILIES[spec.family]
    for role, template in (*family.tensors.items(), *family.renamed.items()):
        if match := _pattern(template).fullmatch(info.name):
            number = {letter: int(digits) for letter, digits in match.groupdict().items()}
            place = Place(role, number.get("L"), number.get("E"))
            inside = (place.layer or 0) < spec.layers and (place.expert is None or place.expert < spec.experts)
            return {place: info} if inside else {}
    for template, roles in family.stacked.items():
        if (match := _pattern(template).fullmatch(info.name)) and int(match["L"]) < spec.layers:
            return _stacked_places(info, spec, int(match["L"]), roles)
    return {}


def _stacked_places(info: TensorInfo, spec: ModelSpec, layer: int, roles: tuple[str, ...]) -> dict[Place, TensorInfo]:
    """The places within a tensor that holds all experts of a layer."""
    shape = shape_of(spec, Place(roles[0], layer, 0))
    _require_shape(info, (spec.experts, shape[0] * len(roles), shape[1]))
    size = info.size_bytes // (spec.experts * len(roles))
    slots = [Place(role, layer, expert) for expert in range(spec.experts) for role in roles]
    return {
        place: TensorInfo(info.name, info.file, info.dtype, shape, info.start + i * size, size)
        for i, place in enumerate(slots)
    }


def _require_shape(info: TensorInfo, shape: tuple[int, ...]) -> None:
    if info.shape != shape:
        raise TsconvertError(
            f"{info.file}: tensor {info.name} has shape {list(info.shape)} where config.json makes it"
            f" {list(shape)}; config and weights belong to different models, download both again"
        )
