"""`tsconvert export-gguf`: write the file, then prove it against its source before it is handed over."""

from dataclasses import dataclass
from typing import Any

from ..common.command_line import typed
from ..common.files import atomic_file, write_json
from ..quant.config import ExportConfig
from ..quant.export import ExportReport, export_unverified
from ..quant.metadata.model_card import card_path
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


def export_gguf(config: ExportConfig, *, check: bool = True) -> VerifiedExport:
    """Write the GGUF file that ``config`` asks for and verify it.

    Args:
        config: the model, the file, types and target.
        check: verify; False only writes.

    Returns:
        What was written and how it compares with its source; ``require()`` raises if it does not.

    Raises:
        TsconvertError: as `quant.export.export_unverified` does; no file is left then.

    Example:
        >>> export_gguf(ExportConfig(model="tiny-mistral", out=Path("tiny.gguf"), type_name="Q8_0")).require()
    """
    report = export_unverified(config)
    found = _verified(config, report) if check and not config.dry_run else None
    exported = VerifiedExport(export=report, verification=found)
    if not config.dry_run:
        record = config.out.with_name(config.out.name + ".json")
        write_json(record, {**exported.to_json(), "format": "tsconvert export", "command": typed()})
    return exported


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
