"""Predictor folders, PowerInfer's .pt files, profiles and stored logits that are wrong."""

import io
import json
import random
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_inputs import CONFIG, DRELU, packed, tensors_of
from mutate import NUMBERS, mutate_bytes, mutate_json, odd_value

FINGERPRINT = "0" * 64
_KINDS = {"float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32", "uint8": "U8", "uint16": "U16"}


def safetensors_of(
    arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None
) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file of ``arrays``."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        kind = _KINDS[str(array.dtype)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return header, data


def _damaged(rng: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    """A file whose header says other shapes, types or extents, or with other bytes."""
    header = json.loads(json.dumps(header))
    if rng.random() < 0.5:
        name = rng.choice([name for name in header if name != "__metadata__"])
        entry, what = header[name], rng.randrange(6)
        if what == 0:
            entry["shape"] = rng.choice((entry["shape"][::-1], [*entry["shape"], 1], [0], []))
        elif what == 1:
            entry["dtype"] = rng.choice(("F8_E4M3", "BF16", "I32", "BOOL", "F16", "U64", "C64"))
        elif what == 2:
            header["x"] = header.pop(name)
        elif what == 3:  # a sound file of a changed tensor, which the library lets through
            values = rng.choice((np.nan, np.inf, 1e38, 0.0, -1.0))
            array = np.full(rng.choice(((1,), (2, 3), (0,), (0, 16), tuple(entry["shape"]))), values, np.float32)
            start, end = entry["data_offsets"]
            raw = array.tobytes()
            for other in header.values():
                if isinstance(other, dict) and "data_offsets" in other and other["data_offsets"][0] >= end:
                    other["data_offsets"] = [offset + len(raw) - (end - start) for offset in other["data_offsets"]]
            header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, start + len(raw)]}
            data = data[:start] + raw + data[end:]
        else:
            entry["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
        return packed(json.dumps(header).encode(), data)
    raw = json.dumps(header).encode()
    return mutate_bytes(rng, packed(raw, data), len(raw) + 8)


def make_predictors(rng: random.Random, folder: Path) -> None:
    """A predictor folder, with config.json or a layer damaged."""
    source, wrong = np.random.default_rng(5), rng.random()
    config = {
        "format": "tsconvert predictors", "format_version": 2, "model_fingerprint": FINGERPRINT, "input": "normed",
        "thresholds": [[0.1], [None if rng.random() < 0.2 else 0.2]],
        "report": {"tokens": 5, "ffns": [{"layer": 0, "expert": 0, "rank": 4, "recall": 0.9}]},
    }  # fmt: skip
    (folder / "config.json").write_bytes(mutate_json(rng, config) if wrong < 0.5 else json.dumps(config).encode())
    for layer in range(2):
        arrays = {
            "experts.0.fc1.weight": source.standard_normal((4, 16)).astype(np.float32),
            "experts.0.fc2.weight": source.standard_normal((24, 4)).astype(np.float32),
            "experts.0.fired": np.ones(24, np.float32),
        }
        if rng.random() < 0.3:
            signs = source.integers(0, 255, (2, 24, 2)).astype(np.uint8)
            arrays = {"experts.0.signs": signs, "experts.0.width": np.array([16], np.int32)}
        header, data = safetensors_of(arrays)
        raw = packed(json.dumps(header).encode(), data)
        if wrong >= 0.5 and (layer == 0 or rng.random() < 0.3):
            raw = _damaged(rng, header, data)
        (folder / f"layer-{layer:05}.safetensors").write_bytes(raw)


def read_predictors(folder: Path, rng: random.Random) -> None:
    """inspect, and what an export and an evaluation do with the weights."""
    from tsconvert.evaluate.inspect.outputs import inspect
    from tsconvert.predictors.folder import load_predictors

    found = load_predictors(folder, None if rng.random() < 0.5 else FINGERPRINT)
    for experts in found.ffns:
        for predictor in experts:
            if predictor is not None:
                width = getattr(predictor, "width", 0) or predictor.fc1_RD.shape[1]
                with np.errstate(all="ignore"):
                    predictor.logits(np.zeros((2, width), np.float32))
    shown = inspect(str(folder))
    str(shown)
    shown.to_json()
    if rng.random() < 0.2:
        from tsconvert.evaluate.records.outputs import read_record

        read_record(folder)


@cache
def _checkpoint() -> Any:
    import tempfile

    from tsconvert.model.checkpoint import Checkpoint

    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    header, data = tensors_of(DRELU)
    (folder / "config.json").write_text(json.dumps(DRELU))
    (folder / "model.safetensors").write_bytes(packed(json.dumps(header).encode(), data))
    return Checkpoint(folder)


@cache
def _saved(strided: bool) -> bytes:
    import torch

    stream = io.BytesIO()
    fc1, fc2 = torch.randn(4, CONFIG["hidden_size"]), torch.randn(CONFIG["intermediate_size"], 4)
    if strided:
        fc1, fc2 = torch.zeros(1).expand(4, 16), torch.randn(4, 24).T
    torch.save({"fc1.weight": fc1, "fc2.weight": fc2}, stream)
    return stream.getvalue()


def make_pt(rng: random.Random, folder: Path) -> None:
    """PowerInfer's folder with the bytes, the pickle or the archive of one file damaged."""
    threshold = {"sparse_threshold": 0.0}
    config = mutate_json(rng, threshold) if rng.random() < 0.1 else json.dumps(threshold).encode()
    (folder / "config.json").write_bytes(config)
    raw = _saved(rng.random() < 0.2)
    for layer in range(2):
        (folder / f"model_{layer}.pt").write_bytes(_damaged_archive(rng, raw) if layer == 0 else raw)


def _damaged_archive(rng: random.Random, raw: bytes) -> bytes:
    if rng.random() < 0.4:
        return mutate_bytes(rng, raw)
    parts = {}
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice((*parts, *(each for each in parts if each.endswith("data.pkl")), next(iter(parts))))
    what = rng.random()
    if what < 0.1:
        del parts[name]
    elif what < 0.2:
        parts[name] = rng.choice((b"", b"\x00" * 100_000, b"cos\nsystem\n(S'true'\ntR.", b"x" * 7))
    else:
        parts[name] = mutate_bytes(rng, parts[name])
    out = io.BytesIO()
    squeeze = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", squeeze) as archive:
        for each, content in parts.items():
            archive.writestr(each, content)
    return out.getvalue()


def read_pt(folder: Path, rng: random.Random) -> None:
    """As predictors and as what an export takes."""
    from tsconvert.predictors.powerinfer_folder import load_powerinfer_predictors

    load_powerinfer_predictors(folder, _checkpoint())


def make_profile(rng: random.Random, folder: Path) -> None:
    """A profile, or stored logits, with its summary or its tables damaged."""
    if rng.random() < 0.5:
        layer = {
            "density": 0.2, "density_percentiles": {"5": 0.1, "50": 0.2}, "gate_density": 0.4, "hot80": 0.3,
            "energy98": 0.1, "union": {"1": 0.2, "8": 0.5},
        }  # fmt: skip
        about = {
            "format": "tsconvert profile", "format_version": 1, "model_fingerprint": FINGERPRINT, "corpora": ["a"],
            "tokens": [9], "density": 0.2, "layers": [layer, layer],
        }  # fmt: skip
        arrays = {"counts": np.ones((2, 1, 1, 24), np.int64), "tokens": np.full((2, 1, 1), 9, np.int64)}
    else:
        about = {
            "format": "tsconvert logits", "format_version": 1, "model": "m", "model_fingerprint": FINGERPRINT,
            "vocabulary": 32, "corpora": ["a"],
            "windowing": {"method": "llama.cpp", "context": 8, "stride": None, "tokens": 16, "chunks": None},
        }  # fmt: skip
        arrays = {
            "rows": np.ones((2, 8), np.int32), "first": np.ones(2, np.int32), "corpus": np.zeros(2, np.int32),
            "top": np.ones((14, 3), np.uint16), "log_p": np.full((14, 3), -2, np.float32),
            "target": np.full(14, -1, np.float32),
        }  # fmt: skip
    text = mutate_json(rng, about).decode("utf-8", "replace") if rng.random() < 0.6 else json.dumps(about)
    header, data = safetensors_of(arrays, {"tsconvert": text if rng.random() < 0.95 else str(odd_value(rng))})
    raw = packed(json.dumps(header).encode(), data)
    (folder / "p.safetensors").write_bytes(
        raw if "\ufffd" in text or rng.random() < 0.5 else _damaged(rng, header, data)
    )


def read_profile(folder: Path, rng: random.Random) -> None:
    """inspect and the report's reader."""
    from tsconvert.evaluate.inspect.outputs import inspect
    from tsconvert.evaluate.records.outputs import read_record

    path = folder / "p.safetensors"
    if rng.random() < 0.3:
        read_record(path)
    shown = inspect(str(path))
    str(shown)
    shown.to_json()
