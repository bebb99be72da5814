"""Where a model comes from: licence, base model, tags, and what was done to it, for a GGUF file's keys and its card.

The model card (README.md) is read by gguf-py's own helper; what tsconvert did is in tsconvert.json.
"""

import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ... import embedded
from ...common.errors import TsconvertError
from ...model.checkpoint import Checkpoint
from ...model.files.provenance import read_provenance
from ..gguf.values import Value, array, text, u32


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A model that this one was made from."""

    name: str
    organization: str = ""
    repo_url: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Where a model comes from and what was done to it; empty where nothing is known."""

    license: str = ""
    license_name: str = ""
    license_link: str = ""
    description: str = ""
    base_models: tuple[BaseModel, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    recovery: dict[str, Any] = field(default_factory=dict)
    """The conversion by relufy: activation, tokens, perplexities, density."""
    predictors: dict[str, Any] = field(default_factory=dict)
    """How the predictors were trained and what they keep."""
    fingerprint: str = ""
    """The checkpoint's."""

    def keys(self) -> dict[str, Value]:
        """The file's keys, `general.*` and `tsconvert.*`."""
        words = {"license": self.license, "license.name": self.license_name, "license.link": self.license_link}
        words["description"] = self.description
        keys = {f"general.{name}": text(value) for name, value in words.items() if value}
        if self.base_models:
            keys["general.base_model.count"] = u32(len(self.base_models))
        for i, base in enumerate(self.base_models):
            keys |= {f"general.base_model.{i}.{name}": text(value) for name, value in vars(base).items() if value}
        lists = {"tags": self.tags, "languages": self.languages, "datasets": self.datasets}
        keys |= {f"general.{name}": array("str", values) for name, values in lists.items() if values}
        keys["tsconvert.version"] = text(version("tsconvert"))
        keys["tsconvert.source_fingerprint"] = text(self.fingerprint)
        for name, summary in (("recovery", self.recovery), ("predictors", self.predictors)):
            if summary:
                keys[f"tsconvert.{name}"] = text(json.dumps(summary))
        return keys


def read_info(checkpoint: Checkpoint, predictor_report: dict[str, Any]) -> ModelInfo:
    """Read the checkpoint's folder, its base model's folder and the report of the predictors' training.

    Raises:
        TsconvertError: tsconvert.json or README.md is damaged.
    """
    folder = checkpoint.folder
    told = read_provenance(folder)
    settings, report = (told.settings, told.report) if told else ({}, {})
    made_from = str(settings.get("model", ""))
    card, base_card = _card(folder), _card(_local_folder(made_from)) if made_from else {}
    sparse = (checkpoint.spec.activation, "sparse") if checkpoint.spec.sparse else ()
    tags = ["text-generation", *sparse, *card.get("tags", ())]
    hub_id = not Path(made_from).is_absolute() and made_from.count("/") == 1
    made = [BaseModel(name=made_from if hub_id else Path(made_from).name)] if made_from else []
    licenses = {name: card.get(name) or base_card.get(name, "") for name in ("license", "license_name", "license_link")}
    return ModelInfo(
        **licenses,
        description=card.get("description", ""),
        base_models=tuple(card.get("base_models") or made),
        tags=tuple(dict.fromkeys(tags)),
        languages=tuple(card.get("languages") or base_card.get("languages", ())),
        datasets=tuple(card.get("datasets", ())),
        recovery=_recovery(settings, report),
        predictors=_predictors(predictor_report),
        fingerprint=checkpoint.fingerprint,
    )


def _recovery(settings: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    if not settings:
        return {}
    densities = [layer["density"] for layer in report.get("layers", ()) if layer.get("density") is not None]
    summary = {
        "activation": settings.get("activation"),
        "recover": settings.get("recover"),
        "aligned": settings.get("align"),
        "tokens": report.get("tokens"),
        "dense_perplexity": report.get("dense_perplexity"),
        "perplexity": report.get("perplexity"),
        "density": sum(densities) / len(densities) if densities else None,
        "made_from": report.get("source_fingerprint"),
    }
    return {name: value for name, value in summary.items() if value is not None}


def _predictors(report: dict[str, Any]) -> dict[str, Any]:
    summary = {
        name: report[name]
        for name in ("method", "source", "tokens", "target_energy", "perplexity_exact", "perplexity_predicted")
        if isinstance(report.get(name), str | int | float)
    }
    means = report.get("mean")
    return summary | (means if isinstance(means, dict) else {})


def _card(folder: Path | None) -> dict[str, Any]:
    """README.md's front matter by gguf-py's field names; empty values are left out."""
    if folder is None or not (folder / "README.md").is_file():
        return {}
    from gguf.metadata import Metadata

    try:
        content = Metadata.load_model_card(folder)
        found = Metadata.apply_metadata_heuristic(Metadata(), content)
    except Exception as error:  # YAML that is none, or of another kind than expected
        raise TsconvertError(f"{folder / 'README.md'}: the front matter cannot be read ({error}); mend it") from None
    fields = {name: value for name, value in vars(found).items() if value}
    if "base_models" in fields:
        fields["base_models"] = [
            BaseModel(**{name: str(base.get(name) or "") for name in ("name", "organization", "repo_url")})
            for base in fields["base_models"]
        ]
    return fields


def _local_folder(model: str) -> Path | None:
    """The folder of a base model, if it is on this machine; a hub is never asked."""
    if Path(model).is_dir():
        return Path(model)
    return embedded.folder(model) if model in embedded.NAMES else None
