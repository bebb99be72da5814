"""`tsconvert export-gguf`: write the file, then prove it against its source before it is handed over."""

from dataclasses import dataclass
from typing import Any

from ..common.command_line import typed
from ..common.errors import TsconvertError
from ..common.files import atomic_file, write_json
from ..model.checkpoint import open_checkpoint
from ..quant.config import ExportConfig
from ..quant.export import ExportReport, export_unverified
from ..quant.metadata.model_card import card_path
from .modelfile import write_modelfile
from .verify.compare import VerifyReport, verify
from .verify.config import VerifyConfig


@dataclass(frozen=True, kw_only=True)
class VerifiedExport:
    """A file that was written, and what became of its verification."""

    export: ExportReport
    verification: VerifyReport | None
    """None: nothing was written, or no verification was asked for."""

    def require(self) -> None:
        """Raise if the verification failed; the file stays where it is.

        Raises:
            CheckFailedError: names what failed.
        """
        if self.verification is not None:
            self.verification.require()

    def to_json(self) -> dict[str, Any]:
        """The export's fields, and the verification's under `verification`."""
        found = self.verification.to_json() if self.verification is not None else None
        return self.export.to_json() | {"verification": found}

    def __str__(self) -> str:
        return f"{self.export}\n{self.verification}" if self.verification is not None else str(self.export)


def export_gguf(config: ExportConfig, *, check: bool = True, for_ollama: bool = False) -> VerifiedExport:
    """Write the GGUF file that ``config`` asks for and verify it.

    Args:
        config: the model, the file, types and target.
        check: verify; False only writes.
        for_ollama: write a Modelfile beside it (modelfile.py).

    Returns:
        What was written and how it compares with its source; ``require()`` raises if it does not.

    Raises:
        TsconvertError: as `quant.export.export_unverified` does; no file is left then.

    Example:
        >>> export_gguf(ExportConfig(model="tiny-mistral", out=Path("tiny.gguf"), type_name="Q8_0")).require()
    """
    if for_ollama:
        _check_for_ollama(config)
    report = export_unverified(config)
    if for_ollama:
        write_modelfile(report.out)
    found = _verified(config, report) if check and not config.dry_run else None
    exported = VerifiedExport(export=report, verification=found)
    if not config.dry_run:
        record = config.out.with_name(config.out.name + ".json")
        write_json(record, {**exported.to_json(), "format": "tsconvert export", "command": typed()})
    return exported


def _check_for_ollama(config: ExportConfig) -> None:
    """Raise if the file to come is none that Ollama runs, which has llama.cpp inside."""
    if config.target is None and open_checkpoint(config.model).spec.sparse:
        raise TsconvertError(
            f"--modelfile: {config.model} is sparse and its file for tsconvert's own runner; Ollama runs what llama.cpp"
            " does: leave it out, or give --target llama.cpp"
        )


def _verified(config: ExportConfig, report: ExportReport) -> VerifyReport:
    """The file compared with its source; the model card says how."""
    overridden = frozenset(key for key, _ in config.metadata)
    found = verify(
        VerifyConfig(
            model=config.model, file=report.out, predictors=config.predictors, overridden=overridden,
            importances=config.imatrix is not None,
        )
    )  # fmt: skip
    card = card_path(config.out).read_bytes()
    with atomic_file(card_path(config.out)) as stream:
        stream.write(card + f"\nVerified against the checkpoint when it was written:\n\n```\n{found}\n```\n".encode())
    return found
