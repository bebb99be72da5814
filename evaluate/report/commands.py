"""The command `report`."""

from ...common.commands import Asked, command, heading
from ...common.options import OUT_FILE, PATH, argument, setting
from .config import ReportConfig


@command(
    "report",
    argument(ReportConfig, "folder", "Checkpoints, predictors, profiles, importance matrices, GGUF files, and what"
             " eval, bench and check printed with --json, saved as .json files.", "FOLDER", PATH),
    heading("Output", setting(ReportConfig, "out", "The page; replaces an older one.", kind=OUT_FILE)),
)  # fmt: skip
def report(asked: Asked) -> None:
    """Write one HTML page about a folder of outputs: what was made of what, figures and plots."""
    from .page import report as run_report

    asked.emit(run_report(asked.config(ReportConfig)))
