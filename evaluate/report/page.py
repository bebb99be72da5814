"""`tsconvert report`: one self-contained HTML page about a folder of outputs.

It asks nothing of the network and runs no script: styles and plots are in the page. What the folder does not hold is
left out and named at the end, never guessed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError, reason
from ...common.files import atomic_file
from ...common.results import Result
from ...common.units import size_text
from . import summary
from .config import ReportConfig
from .elements import Command, Figure, Sample, Table
from .files import files, quantization
from .findings import Findings, read_findings
from .firing import firing
from .measurements import checks, provenance, samples, speed
from .perplexity import perplexity
from .predictors import predictors
from .training import training

_SECTIONS = (
    ("perplexity", "What it costs", perplexity),
    ("activity", "Which neurons fire", firing),
    ("predictors", "How well firing is foreseen", predictors),
    ("speed", "How fast it runs", speed),
    ("training", "How it was recovered", training),
    ("files", "The files", files),
    ("quantization", "What storing the weights cost", quantization),
    ("samples", "What it writes", samples),
    ("checks", "Thresholds", checks),
    ("commands", "How it was made", provenance),
)
_KINDS = {"text": str, "figures": Figure, "tables": Table, "samples": Sample, "commands": Command}


@dataclass(frozen=True, kw_only=True)
class WrittenReport(Result):
    """What was written."""

    out: Path
    size_bytes: int
    sections: list[str]
    missing: list[str]
    """Figures that the folder does not hold."""
    unreadable: list[str]

    def __str__(self) -> str:
        lines = [f"{self.out}: {size_text(self.size_bytes)}, {', '.join(self.sections)}"]
        lines += [f"not in the folder: {', '.join(self.missing)}"] if self.missing else []
        return "\n".join([*lines, *(f"not read: {problem}" for problem in self.unreadable)])


def report(config: ReportConfig) -> WrittenReport:
    """Write the page.

    Raises:
        TsconvertError: there is no such folder, or nothing in it that tsconvert made.

    Example:
        >>> report(ReportConfig(folder=Path("demo-out"), out=Path("report.html")))
    """
    if config.out.is_dir():
        raise TsconvertError(f"{config.out}: is a folder; give --out the page's name, such as {config.out}/report.html")
    found = read_findings(config.folder)
    try:
        page = page_of(found)
        content = render(page).encode()
    except Exception as error:
        raise TsconvertError(
            f"{_strange(found)}: is not what tsconvert writes ({reason(error)}); remove it or write it again"
        ) from error
    with atomic_file(config.out) as stream:
        stream.write(content)
    return WrittenReport(
        out=config.out, size_bytes=len(content), sections=[section["title"] for section in page["sections"]],
        missing=[what for what, _ in page["missing"]], unreadable=found.unreadable,
    )  # fmt: skip


def _strange(found: Findings) -> Path:
    """The record that no page can be made of by itself, or the folder."""
    for kind, records in found.results.items():
        for record in records:
            try:
                render(page_of(Findings(folder=found.folder, results={kind: [record]})))
            except Exception:
                return record.path
    return found.folder


def page_of(found: Findings) -> dict[str, Any]:
    """All that the template shows, by the names that it has there."""
    sections = []
    for id_, title, make in _SECTIONS:
        elements = list(make(found))
        if any(not isinstance(element, str) for element in elements):
            kinds = {name: [each for each in elements if isinstance(each, kind)] for name, kind in _KINDS.items()}
            sections.append({"id": id_, "title": title, **kinds})
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {
        "title": summary.title(found), "sentences": list(summary.sentences(found)),
        "tiles": list(summary.tiles(found)), "chain": list(summary.chain(found)), "sections": sections,
        "missing": list(summary.missing(found)), "unreadable": found.unreadable,
        "footer": f"Written by tsconvert {version('tsconvert')} on {now} from {found.folder.resolve()}.",
    }  # fmt: skip


def render(page: dict[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(page=page, style=(here / "report.css").read_text(encoding="utf-8"))
