"""Where each tensor of a checkpoint lies, and what config.json means beside those tensors.

Where the files contradict each other this follows transformers, with a note, or refuses.
"""

import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..common.errors import TsconvertError, label
from .families import FAMILIES, SPARSE_TYPES
from .files.dtypes import to_float32
from .files.safetensors_files import (
    INDEX,
    SINGLE,
    TensorInfo,
    UnreadableTypeError,
    read_header,
    shard_files,
    weight_map,
)
from .spec import ModelSpec, family_of, quantization_method, read_config, spec_of, text_config
from .tensor_names import UP_SCALE, Place, hf_name, model_places, shape_of

_BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|model\.rotary_emb\.inv_freq")
"""Buffers that old versions of transformers saved."""
_VALUE_HEAD = re.compile(r"v_head\.(summary\.)?\w+")
"""The value head that reinforcement learning (trl) leaves in a model; transformers does not load it."""
_BIASES = {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."}
"""Key that says there are biases -> what their names have in them."""
_OTHER_PARTS = re.compile(r"(model\.)?(vision_tower|vision_model|multi_modal_projector|embed_vision)\..+")
"""Tensors of a model with a language model in it that are not the language model's."""
_PIECE_BYTES = 1 << 24
_PREFIXES = {
    "_orig_mod.": "a torch.compile wrapper was saved: save the model inside it (model._orig_mod)",
    "module.": "a data-parallel wrapper was saved: save the model inside it (model.module)",
    "base_model.model.": "a PEFT wrapper was saved: merge its adapters (merge_and_unload) and save what that returns",
    "model.language_model.": "the model has other parts than the language model: save its language model alone",
    "language_model.": "the model has other parts than the language model: save its language model alone",
}
"""What stands before the names in checkpoints that transformers does not load as a language model -> what to do."""
_INSIDE = {"language_model.model.": "model.", "model.language_model.": "model.", "language_model.": ""}
"""The beginnings of names in models that have a language model in them -> those that it has alone."""


@dataclass
class Found:
    """The tensors of a checkpoint folder, all there, of the right shapes, and within their files."""

    config: dict[str, Any]
    """config.json, without what the tensors contradict."""
    spec: ModelSpec
    infos: dict[Place, TensorInfo] = field(default_factory=dict)
    """In the order of the model; predictors last."""
    notes: list[str] = field(default_factory=list)


def find_tensors(folder: Path) -> Found:
    """The tensors of the checkpoint in ``folder``, and its spec."""
    where = folder / "config.json"
    whole = read_config(folder)
    written = text_config(whole)
    found = _describe(written, where)
    config, doubted = found.config, [key for key in written if key not in found.config]
    if written.get("auto_map") and written["model_type"] not in SPARSE_TYPES:
        found.notes.append(
            f"{where}: auto_map names code of the folder's own, which is not run: the model is read as transformers'"
            f" {found.spec.family}"
        )
    try:
        infos = _read_headers(folder, found.notes)
        if "text_config" in whole and "text_config" not in written:
            infos = _language_model(infos, whole, found)
    except UnreadableTypeError:
        spec_of(written, where)  # quantized, then; or else the type alone is wrong
        raise
    others = _place(infos, found)
    biases = [info for info in others if _is_bias(info, found.spec)]
    _note_others(biases, found)
    unknown = [info for info in others if info not in biases and not _harmless(info, found)]
    for key in doubted:
        if unknown if key == "quantization_config" else not any(_BIASES[key] in info.name for info in biases):
            spec_of({**config, key: written[key]}, where)
        elif key == "quantization_config":
            found.notes.append(
                f"{where}: quantization_config ({quantization_method(written)}) is left over, the weights are not"
                " quantized; they are read as they are"
            )
    _leave_out_biases(found)
    _tie(found, folder)
    _require_all(found, folder, unknown)
    order = {place: i for i, place in enumerate(model_places(found.spec))}
    found.infos = dict(sorted(found.infos.items(), key=lambda item: (order.get(item[0], len(order)), str(item[0]))))
    return found


def check_config(folder: Path) -> None:
    """Refuse a folder whose config.json alone says that it cannot be converted, before its weights are fetched."""
    _describe(text_config(read_config(folder)), folder / "config.json")


def _describe(written: dict[str, Any], where: Path) -> Found:
    """What config.json says, without the keys that the tensors may contradict."""
    family = family_of(written, where)
    doubted = [key for key in _BIASES if written.get(key) is True and key not in family.biases]
    if isinstance(written.get("quantization_config"), dict):
        doubted.append("quantization_config")
    config = {key: value for key, value in written.items() if key not in doubted}
    return Found(config, spec_of(config, where))


def _read_headers(folder: Path, notes: list[str]) -> list[TensorInfo]:
    """Every tensor in the files; one of those that are in two shards."""
    files = shard_files(folder)
    if files[0].name == SINGLE and (folder / INDEX).is_file() and set(weight_map(folder).values()) != {SINGLE}:
        notes.append(f"{folder}: {SINGLE} is read, as transformers does, and not the shards of {INDEX} beside it")
    infos: dict[str, TensorInfo] = {}
    twice = 0
    for file in files:
        for info in read_header(file).values():
            if info.name in infos:
                twice += 1
                info = _of_two(infos[info.name], info, weight_map(folder))
            infos[info.name] = info
    if twice:
        notes.append(f"{folder}: {twice} tensors are in two shards; those that {INDEX} names are read")
    return list(infos.values())


def _of_two(first: TensorInfo, second: TensorInfo, index: dict[str, str]) -> TensorInfo:
    """The one of two tensors of the same name, in two shards, that is read. transformers takes the second's."""
    named = index.get(first.name)
    if first.dtype == second.dtype and first.shape == second.shape and _equal(first, second):
        return first if named == first.file.name else second
    if named == second.file.name:
        return second
    raise TsconvertError(
        f"{second.file}: tensor {label(second.name)} has other values in {first.file.name}, {INDEX} names"
        f" {named or 'neither'} and transformers reads {second.file.name}; keep one of the two"
    )


def _language_model(infos: list[TensorInfo], config: dict[str, Any], found: Found) -> list[TensorInfo]:
    """The tensors of the language model within a model that has other parts, by the names that it has alone."""
    inside, others = [], 0
    for info in infos:
        if _OTHER_PARTS.fullmatch(info.name):
            others += 1
            continue
        start = next((start for start in _INSIDE if info.name.startswith(start)), "")
        inside.append(replace(info, name=_INSIDE.get(start, "") + info.name.removeprefix(start)))
    found.notes.append(
        f"{config['model_type']}: its language model ({found.spec.family}) is read; its other parts, {others} tensors,"
        " are left out"
    )
    return inside


def _leave_out_biases(found: Found) -> None:
    """Biases that are zero throughout are none."""
    for key, roles in FAMILIES[found.spec.family].biases.items():
        places = [Place(f"{role}_bias", layer) for layer in range(found.spec.layers) for role in roles]
        infos = [found.infos[place] for place in places if place in found.infos]
        if not infos or len(infos) != len(places) or any(piece.any() for info in infos for piece in _pieces(info)):
            continue
        for place in places:
            del found.infos[place]
        found.spec = replace(found.spec, biases=tuple(role for role in found.spec.biases if role not in roles))
        found.config[key] = False
        found.notes.append(f"{infos[0].file}: {len(infos)} biases are 0 throughout and are left out")


def _place(infos: list[TensorInfo], found: Found) -> list[TensorInfo]:
    """Put the tensors at their places; returns those that have none."""
    others: list[TensorInfo] = []
    for info in infos:
        places = _places_of(info, found.spec)
        if not places and not _BUFFERS.fullmatch(info.name):
            others.append(info)
        for place in places.keys() & found.infos.keys():
            raise TsconvertError(
                f"{info.file}: tensor {label(info.name)} is in {found.infos[place].file.name} already, as"
                f" {label(found.infos[place].name)}; keep one of the two"
            )
        found.infos.update(places)
    return others


def _is_bias(info: TensorInfo, spec: ModelSpec) -> bool:
    name, dot, last = info.name.rpartition(".")
    return last == "bias" and bool(_places_of(replace(info, name=f"{name}{dot}weight", shape=()), spec))


def _note_others(biases: list[TensorInfo], found: Found) -> None:
    for info in biases:
        if any(piece.any() for piece in _pieces(info)):
            raise TsconvertError(
                f"{info.file}: tensor {label(info.name)} is a bias with values other than 0, and by config.json the"
                f" {found.spec.family} model has none there; the two belong to different models, download both again"
            )
    if biases:
        found.notes.append(f"{biases[0].file}: {len(biases)} biases are 0 throughout and are left out")


def _harmless(info: TensorInfo, found: Found) -> bool:
    if not _VALUE_HEAD.fullmatch(info.name):
        return False
    found.notes.append(f"{info.file}: tensor {info.name} is of a value head, which no text needs; it is left out")
    return True


def _tie(found: Found, folder: Path) -> None:
    """Whether the head is the embedding: config.json says so and the file does not hold another one."""
    embedding, head = found.infos.get(Place("token_embd")), found.infos.get(Place("output"))
    if not found.spec.tied or head is None:
        return
    if embedding is None or (embedding.shape == head.shape and _equal(embedding, head)):
        name = hf_name(found.spec, Place("token_embd"))
        found.infos[Place("token_embd")] = embedding or replace(head, name=name)
        del found.infos[Place("output")]
        return
    found.spec = replace(found.spec, tied=False)
    found.config["tie_word_embeddings"] = False
    found.notes.append(
        f"{folder}: tie_word_embeddings is true and {head.name} differs from {embedding.name}: the head is read from"
        " the file, as transformers does"
    )


def _require_all(found: Found, folder: Path, unknown: list[TensorInfo]) -> None:
    spec = found.spec
    for place in model_places(spec):
        if place not in found.infos:
            _refuse_wrapped(unknown, spec)
            role = place.role.removesuffix("_bias")
            said = [key for key, roles in FAMILIES[spec.family].biases.items() if role in roles and role != place.role]
            why = f" and {said[0]} is true in config.json" if said else ""
            raise TsconvertError(
                f"{folder}: tensor {hf_name(spec, place)} is missing{why}; the checkpoint is incomplete, download it"
                " again"
            )
        _require_shape(found.infos[place], shape_of(spec, place))
    if unknown:
        _refuse_wrapped(unknown, spec)
        info = unknown[0]
        raise TsconvertError(
            f"{info.file}: tensor {label(info.name)} has no place in a {spec.family} model;"
            " remove it (an adapter?) or convert the base model"
        )


def _refuse_wrapped(unknown: list[TensorInfo], spec: ModelSpec) -> None:
    """Refuse tensors whose names would be right without what stands before them, or that are of an adapter."""
    for info in unknown:
        if ".lora_" in info.name:
            raise TsconvertError(
                f"{info.file}: tensor {label(info.name)} is of a LoRA adapter; merge it into the model (peft's"
                " merge_and_unload) and save that"
            )
        for prefix, advice in _PREFIXES.items():
            bare = info.name.removeprefix(prefix)
            names = (bare, f"model.{bare}") if bare != info.name else ()
            if any(_places_of(replace(info, name=name), spec) for name in names):
                raise TsconvertError(
                    f"{info.file}: tensor {label(info.name)} has {prefix!r} before its name, so transformers would not"
                    f" find it either; {advice}"
                )


def _pieces(info: TensorInfo) -> Any:
    """A tensor's values as float32, piece by piece."""
    raw: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
    if info.size_bytes:
        raw = np.memmap(info.file, np.uint8, "r", info.start, (info.size_bytes,))
    size = info.size_bytes // max(1, int(np.prod(info.shape, dtype=np.int64)))
    step = _PIECE_BYTES // 4 * max(1, size)
    return (to_float32(raw[start : start + step], info.dtype) for start in range(0, info.size_bytes, step))


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of the same shape hold the same values."""
    return all(np.array_equal(a, b) for a, b in zip(_pieces(one), _pieces(other), strict=True))


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
    biases = {role: family.name_of(role) for role in (f"{role}_bias" for role in spec.biases)}
    own = {role: name for role, name in {**family.tensors, **biases}.items() if family.whole(role) is None}
    names_of = (family.name_of, family.name_in_memory) if spec.up_scaled else ()
    scales = [(UP_SCALE, name_of(UP_SCALE)) for name_of in names_of]
    for role, template in (*own.items(), *family.renamed.items(), *scales):
        if match := _pattern(template).fullmatch(info.name):
            number = {letter: int(digits) for letter, digits in match.groupdict().items()}
            place = Place(role, number.get("L"), number.get("E"))
            inside = (place.layer or 0) < spec.layers and (place.expert is None or place.expert < spec.experts)
            return {place: info} if inside else {}
    for template, roles in family.fused.items():
        if (match := _pattern(template).fullmatch(info.name)) and int(match["L"]) < spec.layers:
            return _row_slices(info, [Place(role, int(match["L"])) for role in roles], spec)
    for template, roles in family.stacked.items():
        if (match := _pattern(template).fullmatch(info.name)) and int(match["L"]) < spec.layers:
            return _stacked_places(info, spec, int(match["L"]), roles)
    return {}


def _row_slices(info: TensorInfo, places: list[Place], spec: ModelSpec) -> dict[Place, TensorInfo]:
    """The places whose rows lie one below the other in a tensor."""
    shapes = [shape_of(spec, place) for place in places]
    rows = sum(shape[0] for shape in shapes)
    if info.shape:
        _require_shape(info, (rows, *shapes[0][1:]))
    found, start = {}, info.start
    for place, shape in zip(places, shapes, strict=True):
        size = info.size_bytes // rows * shape[0]
        found[place] = TensorInfo(info.name, info.file, info.dtype, shape, start, size)
        start += size
    return found


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
