"""What a folder of outputs holds: every record in it, told apart, and what could not be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import PARTIAL
from ...model.files.gguf.file import is_gguf
from ...predictors.profile.file import Profile, load_profile
from ..records.outputs import Record, read_record

_DEPTH = 3
_LATER_SHARD = "-of-"
# keys that only one command's --json output has
_JSON_KINDS = (
    ("convert", ("stages", "asked")),
    ("check", ("lines", "stages")),
    ("shape", ("rows", "layers_measured")),
    ("export", ("architecture", "tensors")),
    ("bench", ("rows", "repetitions")),
    ("eval", ("measures", "mode", "model")),
    ("eval", ("perplexity", "mode", "model")),  # before it had measures
    ("verify", ("failures", "types")),
    ("relufy", ("source_fingerprint", "layers")),
    ("predictors", ("ffns", "predictor_parameters")),
    ("profile", ("corpora", "layers")),
    ("run", ("text", "tokens")),
)
_RECOVERIES = ("none", "local", "full")


@dataclass(kw_only=True)
class Findings:
    """The records of a folder, each list in the order in which its members were written."""

    folder: Path
    checkpoints: list[Record] = field(default_factory=list)
    predictors: list[Record] = field(default_factory=list)
    profiles: list[tuple[Record, Profile]] = field(default_factory=list)
    imatrices: list[Record] = field(default_factory=list)
    files: list[Record] = field(default_factory=list)
    """GGUF files."""
    results: dict[str, list[Record]] = field(default_factory=dict)
    """JSON outputs of commands, by command."""
    unreadable: list[str] = field(default_factory=list)
    """Why each file or folder that could not be read could not."""

    def name(self, path: Path | str) -> str:
        """How the page calls a path: from the folder on."""
        where, root = Path(path), self.folder.resolve()
        for candidate in (where, Path.cwd() / where):
            if candidate.resolve().is_relative_to(root):
                inside = str(candidate.resolve().relative_to(root))
                return inside if inside != "." else root.name
        return where.name or str(path)

    @property
    def outputs(self) -> list[Record]:
        """All that is not a command's printed result."""
        profiles = [record for record, _ in self.profiles]
        return [*self.checkpoints, *self.predictors, *profiles, *self.imatrices, *self.files]

    @property
    def _converted(self) -> list[Record]:
        return [record for record in self.checkpoints if "settings" in record.figures]

    @property
    def sparse(self) -> Record | None:
        """The checkpoint that the folder is about: of those that relufy made, the one with most work in it."""
        starts = {self.name(str(record.figures["settings"]["model"])) for record in self._converted}

        def work(record: Record) -> tuple[int, bool]:
            recovery = record.figures["settings"].get("recover")
            trained = _RECOVERIES.index(recovery) if recovery in _RECOVERIES else 0
            return trained, self.name(record.path) not in starts

        return max(self._converted, key=work, default=None)

    @property
    def history(self) -> list[Record]:
        """The checkpoints that `sparse` was made from, the oldest first, and itself."""
        made = {self.name(record.path): record for record in self._converted}
        found = [self.sparse] if self.sparse is not None else []
        while found:
            before = made.get(self.name(str(found[0].figures["settings"]["model"])))
            if before is None or before in found:
                break
            found.insert(0, before)
        return found

    @property
    def source(self) -> str | None:
        """The dense model's name, as relufy was given it."""
        history = self.history
        return self.name(str(history[0].figures["settings"]["model"])) if history else None

    @property
    def best_predictors(self) -> Record | None:
        """The last predictor folder that has figures."""
        return next((record for record in reversed(self.predictors) if record.figures.get("ffns")), None)

    def of(self, command: str) -> list[dict[str, Any]]:
        """The figures of one command's JSON results."""
        return [record.figures for record in self.results.get(command, [])]


def read_findings(folder: Path) -> Findings:
    """Read all records in a folder; what cannot be read is named, not fatal.

    Raises:
        TsconvertError: there is no such folder, or nothing in it that tsconvert made.
    """
    if not folder.is_dir():
        raise TsconvertError(f"{folder}: no such folder; give one that holds outputs of tsconvert")
    found = Findings(folder=folder)
    for path in sorted(_candidates(folder, _DEPTH), key=lambda each: (each.stat().st_mtime_ns, str(each))):
        try:
            _add(found, path)
        except TsconvertError as error:
            found.unreadable.append(str(error))
    if not found.outputs and not found.results and not found.unreadable:
        raise TsconvertError(f"{folder}: holds no output of tsconvert; give the folder that the stages wrote into")
    return found


def _candidates(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.endswith(PARTIAL):
            continue
        if path.is_dir():
            if (path / "config.json").is_file():
                yield path
            elif depth > 1:
                yield from _candidates(path, depth - 1)
        elif path.suffix in (".safetensors", ".json") or is_gguf(path):
            yield path


def _add(found: Findings, path: Path) -> None:
    if _LATER_SHARD in path.name and "-00001-of-" not in path.name:
        return
    record = read_record(path)
    if record.kind == "json":
        if path.name.endswith(".gguf.json"):
            return  # part of the file's own record
        kind = next((kind for kind, keys in _JSON_KINDS if all(key in record.figures for key in keys)), None)
        if kind:
            found.results.setdefault(kind, []).append(record)
    elif record.kind == "profile":
        found.profiles.append((record, load_profile(path)))
    elif record.kind != "logits":  # which are compared with, and have no figures of their own
        members = {"checkpoint": found.checkpoints, "predictors": found.predictors, "imatrix": found.imatrices}
        members.get(record.kind, found.files).append(record)
