"""`tsconvert inspect`: what a checkpoint, predictor folder, profile, stored logits or GGUF file is and holds.

It says what it is, how big by part, how sparse, and whether it is whole. What is damaged so far that it cannot be read
is an error; what can be read and lacks something is told so.
"""

import math
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import PARTIAL
from ...common.units import size_text
from ...model.checkpoint import Checkpoint
from ...model.files.integrity import INFINITE_BITS
from ...model.files.journal import JOURNAL
from ...model.files.locate import find_model
from ...model.files.provenance import PROVENANCE, not_relufys, read_provenance
from .summary import Inspection, Table, part_of, parts_table


def inspect(path: str, *, tensors: bool = False) -> Inspection:
    """Say what ``path`` is.

    Args:
        tensors: list every tensor.

    Raises:
        TsconvertError: it is nothing that tsconvert knows, or is damaged.
    """
    where = Path(path)
    partial = where.with_name(where.name + PARTIAL)
    if not where.exists() and partial.exists():
        raise TsconvertError(
            f"{path}: is not finished, {partial} is what there is; inspect that or go on with --resume"
        )
    if where.is_file():
        return _file(where, tensors)
    if (where / JOURNAL).is_file():
        return _unfinished(where)
    folder = find_model(path)
    config = folder / "config.json"
    if config.is_file() and '"tsconvert predictors"' in config.read_text(encoding="utf-8", errors="replace"):
        return _predictors(folder)
    return _checkpoint(folder, tensors)


def _file(path: Path, tensors: bool) -> Inspection:
    if path.suffix != ".safetensors":
        from .gguf import inspect_gguf

        return inspect_gguf(path, tensors)
    from ..records.reference_logits import FORMAT, read_metadata

    return _logits(path) if read_metadata(path).get("format") == FORMAT else _profile(path)


def _checkpoint(folder: Path, tensors: bool) -> Inspection:
    checkpoint = Checkpoint(folder)
    spec = checkpoint.spec
    infos, scans = {place: checkpoint.info(place) for place in checkpoint.places}, checkpoint.scans
    facts: dict[str, Any] = {
        "parameters": f"{spec.parameters / 1e6:,.1f}M",
        "size": size_text(checkpoint.size_bytes),
        "activation": spec.activation,
        "layers": spec.layers,
        "width": spec.width,
        "neurons": f"{spec.neurons}" + (f" in each of {spec.experts} experts" if spec.experts else ""),
        "experts a token": spec.experts_per_token or None,
        "heads": f"{spec.heads}, {spec.kv_heads} for keys and values",
        "vocabulary": spec.vocab,
        "context": spec.context,
        "sliding window": spec.sliding_window,
        "predictors inside": checkpoint.has_predictors,
        "fingerprint": checkpoint.fingerprint,
    }
    told, tables = _provenance(folder)
    places = (
        (part_of(place.role), info.dtype, math.prod(info.shape), info.size_bytes) for place, info in infos.items()
    )
    broken = next((infos[at].name for at in infos if scans[at].largest_bits >= INFINITE_BITS[infos[at].dtype]), None)
    state = f"all {len(infos)} tensors are there, none holds NaN or infinity"
    if broken:
        state = f"tensor {broken} holds NaN or infinity"
    listed = infos.values() if tensors else ()
    return Inspection(
        path=str(folder), kind=f"{spec.family} checkpoint", whole=not broken, state=state, facts=facts | told,
        tables=[parts_table(places), *tables],
        tensors=[(info.name, info.dtype, list(info.shape), info.size_bytes) for info in listed],
    )  # fmt: skip


def _provenance(folder: Path) -> tuple[dict[str, Any], list[Table]]:
    if (made := read_provenance(folder)) is None:
        return {}, []
    report = made.report
    try:
        layers = [[i, float(layer["density"])] for i, layer in enumerate(report["layers"])]
        facts = {
            "made from": report["source_fingerprint"],
            "perplexity": report["perplexity"]
            and f"{report['perplexity']:.2f}, dense {report['dense_perplexity']:.2f}",
            "density": f"{sum(row[1] for row in layers) / len(layers):.3f}, mean over layers" if layers else None,
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise not_relufys(folder / PROVENANCE) from None
    table = Table(title="neurons that fired in recovery", header=["layer", "density"], rows=layers)
    return facts, [table] if layers else []


def _unfinished(folder: Path) -> Inspection:
    """The partial output of a sweep: its journal has one line for each finished layer."""
    lines = (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Inspection(
        path=str(folder), kind="unfinished output", whole=False,
        state=f"{max(0, len(lines) - 1)} layers are finished; go on with --resume",
        facts={"size": size_text(size)},
    )  # fmt: skip


def _predictors(folder: Path) -> Inspection:
    from ...predictors.folder import load_predictors

    found = load_predictors(folder)
    reported = {(str(ffn.get("layer")), str(ffn.get("expert"))): ffn for ffn in found.report.get("ffns", [])}
    rows: list[list[Any]] = []
    parameters = size = total = 0
    for layer, experts in enumerate(found.ffns):
        for expert, predictor in enumerate(experts):
            total += 1
            if predictor is None:
                continue
            parameters, size = parameters + predictor.parameters, size + 4 * predictor.parameters
            said = reported.get((str(layer), str(expert)), {})
            figures = [said.get(name, "") for name in ("density", "predicted_density", "recall", "energy")]
            rows.append([layer, expert, said.get("rank", ""), float(predictor.threshold), *figures])
    header = ["layer", "expert", "rank", "threshold", "density", "predicted", "recall", "energy"]
    facts: dict[str, Any] = {
        "for model": found.model_fingerprint,
        "FFNs": f"{len(rows)} of {total} have a predictor",
        "parameters": f"{parameters / 1e6:,.2f}M",
        "size": size_text(sum(file.stat().st_size for file in folder.iterdir())),
        "mean recall": _mean(rows, 6),
        "mean predicted density": _mean(rows, 5),
        "mean density": _mean(rows, 4),
    }
    simple = {key: value for key, value in found.report.items() if isinstance(value, str | int | float)}
    return Inspection(
        path=str(folder), kind="predictors", whole=True, state=f"all {len(found.ffns)} layers can be read",
        facts=facts | simple, tables=[Table(title="predictors", header=header, rows=rows)] if rows else [],
    )  # fmt: skip


def _mean(rows: list[list[Any]], column: int) -> str | None:
    values = [row[column] for row in rows if isinstance(row[column], float)]
    return f"{sum(values) / len(values):.3f}" if values else None


def _profile(path: Path) -> Inspection:
    from ...predictors.profile.file import load_profile

    profile = load_profile(path)
    unseen = sum(int((layer.tokens_CE.sum(0) == 0).sum()) for layer in profile.layers)
    rows = [
        [i, layer.density, layer.gate_density, layer.hot80, layer.energy98, layer.union.get(8, "")]
        for i, layer in enumerate(profile.layers)
    ]
    header = ["layer", "density", "gate > 0", "80 % of activations", "98 % of energy", "union of 8 tokens"]
    counts = profile.layers[0].counts_CEF
    facts = {
        "of model": profile.model_fingerprint,
        "size": size_text(path.stat().st_size),
        "layers": len(profile.layers),
        "neurons": f"{counts.shape[2]}" + (f" in each of {counts.shape[1]} experts" if counts.shape[1] > 1 else ""),
        "corpora": ", ".join(f"{name} ({n:,} tokens)" for name, n in zip(profile.corpora, profile.tokens, strict=True)),
        "density": f"{profile.density:.3f}, mean over layers",
    }
    state = "every FFN was seen" if not unseen else f"{unseen} experts were reached by no token; profile more text"
    table = Table(title="shares of the neurons", header=header, rows=rows)
    return Inspection(path=str(path), kind="profile", whole=not unseen, state=state, facts=facts, tables=[table])


def _logits(path: Path) -> Inspection:
    from ..records.reference_logits import StoredReference

    stored = StoredReference(path)
    how, windows = stored.how, stored.windows
    facts = {
        "of model": stored.name,
        "fingerprint": stored.fingerprint,
        "size": size_text(path.stat().st_size),
        "vocabulary": stored.about["vocabulary"],
        "kept": f"the {stored.top} likeliest tokens of each of {windows.counted:,} predictions",
        "windows": f"{len(windows.rows_NS)} of {how.context}, {how.method}"
        + (f", stride {how.stride}" if how.stride else ""),
        "corpora": ", ".join(windows.corpora),
    }
    return Inspection(
        path=str(path), kind="reference logits", whole=True, state="all predictions are there", facts=facts
    )
