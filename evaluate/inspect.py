"""`tsconvert inspect`: what a checkpoint, a predictor folder, a profile or a GGUF file is and holds."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..convert.checkpoint import Checkpoint, find_model
from ..convert.errors import TsconvertError
from ..convert.units import size_text


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found."""

    path: str
    kind: str
    facts: dict[str, Any]
    tensors: list[tuple[str, str, list[int], int]] = field(default_factory=list)
    """Name, type, shape (rows first) and bytes."""

    def to_json(self) -> dict[str, Any]:
        """The inspection as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.kind}"]
        width = max(map(len, self.facts), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in self.facts.items() if value not in (None, "", [])]
        lines += [f"  {name:<48} {kind:<6} {shape!s:<20} {size_text(size)}" for name, kind, shape, size in self.tensors]
        return "\n".join(lines)


def inspect(path: str, *, tensors: bool = False) -> Inspection:
    """Say what ``path`` is.

    Raises:
        TsconvertError: it is nothing that tsconvert knows, or is damaged.
    """
    where = Path(path)
    if where.is_file():
        return _gguf(where, tensors) if where.suffix != ".safetensors" else _profile(where)
    folder = find_model(path)
    config = folder / "config.json"
    if config.is_file() and '"tsconvert predictors"' in config.read_text(encoding="utf-8", errors="replace"):
        return _predictors(folder)
    return _checkpoint(folder, tensors)


def _checkpoint(folder: Path, tensors: bool) -> Inspection:
    checkpoint = Checkpoint(folder)
    spec = checkpoint.spec
    facts: dict[str, Any] = {
        "parameters": f"{spec.parameters / 1e6:,.1f}M",
        "size": size_text(checkpoint.size_bytes),
        "activation": spec.activation,
        "layers": spec.layers,
        "width": spec.width,
        "neurons": f"{spec.neurons}" + (f" in each of {spec.experts} experts" if spec.experts else ""),
        "heads": f"{spec.heads}, {spec.kv_heads} for keys and values",
        "vocabulary": spec.vocab,
        "context": spec.context,
        "sliding window": spec.sliding_window,
        "predictors inside": checkpoint.has_predictors,
        "fingerprint": checkpoint.fingerprint,
    }
    provenance = folder / "tsconvert.json"
    if provenance.is_file():
        facts |= _provenance(provenance)
    listed = [checkpoint.info(place) for place in checkpoint.places] if tensors else []
    return Inspection(
        path=str(folder), kind=f"{spec.family} checkpoint", facts=facts,
        tensors=[(info.name, info.dtype, list(info.shape), info.size_bytes) for info in listed],
    )  # fmt: skip


def _provenance(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))["report"]
        density = [layer["density"] for layer in report["layers"]]
        return {
            "made from": report["source_fingerprint"],
            "perplexity": report["perplexity"]
            and f"{report['perplexity']:.2f}, dense {report['dense_perplexity']:.2f}",
            "density": " ".join(f"{share:.2f}" for share in density),
        }
    except (ValueError, KeyError, TypeError):
        raise TsconvertError(f"{path}: not what relufy writes; remove it") from None


def _predictors(folder: Path) -> Inspection:
    from ..predictors.folder import load_predictors

    found = load_predictors(folder)
    ranks = [[predictor.rank if predictor else None for predictor in experts] for experts in found.ffns]
    trained = [predictor for experts in found.ffns for predictor in experts if predictor]
    facts: dict[str, Any] = {
        "for model": found.model_fingerprint,
        "FFNs": f"{len(trained)} of {sum(map(len, ranks))} have a predictor",
        "ranks": ranks,
        "parameters": f"{sum(p.parameters for p in trained) / 1e6:,.2f}M",
    }
    simple = {key: value for key, value in found.report.items() if isinstance(value, str | int | float)}
    return Inspection(path=str(folder), kind="predictors", facts=facts | simple)


def _profile(path: Path) -> Inspection:
    from ..predictors.profile import load_profile

    profile = load_profile(path)
    return Inspection(path=str(path), kind="profile", facts={"": str(profile)})


def _gguf(path: Path, tensors: bool) -> Inspection:
    from ..quant.gguf_file import GgufFile

    file = GgufFile(path)
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type_name] = sizes.get(tensor.type_name, 0) + tensor.raw.nbytes
    facts: dict[str, Any] = {
        "size": size_text(path.stat().st_size),
        "tensors": len(file.tensors),
        "types": ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items()),
    }
    facts |= {key: _short(value) for key, value in file.metadata.items()}
    listed = list(file.tensors.values()) if tensors else []
    kind = {"GGUF": "GGUF file", "PWRI": "PowerInfer GGUF file"}[file.magic]
    return Inspection(
        path=str(path), kind=f"{kind}, {file.metadata.get('general.architecture', 'no architecture')}", facts=facts,
        tensors=[(tensor.name, tensor.type_name, list(tensor.shape), tensor.raw.nbytes) for tensor in listed],
    )  # fmt: skip


def _short(value: Any) -> str:
    if isinstance(value, list):
        head = ", ".join(str(item)[:20] for item in value[:4])
        return f"[{head}{', ...' if len(value) > 4 else ''}] ({len(value)})"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= 80 else f"{text[:77]}..."
