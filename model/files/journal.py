"""The journal of a sweep: one line for each finished layer, so that a killed run can go on where it was."""

import ast
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.files import naming

JOURNAL = "journal.jsonl"
KEPT = ".kept"
"""The ending of other files in the partial folder that a run resumes from."""


def unfinished(folder: Path) -> bool:
    """Whether a partial folder holds a finished layer, or something else that a run would go on from."""
    journal = folder / JOURNAL
    layers = journal.is_file() and journal.read_bytes().count(b"\n") > 1  # behind the head
    return layers or any(folder.glob(f"*{KEPT}"))


class Journal:
    """Finished layers and the result of each; on the disk before the next layer begins.

    Args:
        path: the file, in the partial output folder.
        head: what the run was asked for and from which model; a resumed run must bring the same.
        earlier: settings that an earlier version had, with their defaults, such as {"full.penalty": "steered"}; a run
            begun with these defaults is resumed.
        later: settings, or parts with all of theirs, on which runs may differ, because an earlier version had them not.

    Raises:
        TsconvertError: the journal there was begun with another head.
    """

    def __init__(
        self, path: Path, head: dict[str, Any], earlier: Mapping[str, object] | None = None, later: Collection[str] = ()
    ) -> None:
        self.path = path
        lines = self._whole_lines() if path.is_file() else []
        begun, asked = (
            {name: value for name, value in found.items() if not {name, name.partition(".")[0]} & set(later)}
            for found in (_settings(lines[0] if lines else head, earlier or {}), _settings(head, earlier or {}))
        )
        if begun != asked:
            raise TsconvertError(
                f"{path.parent}: was begun with other settings or another model; remove it or repeat those"
            )
        self._entries: dict[int, dict[str, Any]] = {line["layer"]: line for line in lines[1:]}
        if not lines:
            self._append(head)

    def entry(self, layer: int) -> dict[str, Any] | None:
        """The result of ``layer`` that `add` was given; None if the layer is not finished."""
        return self._entries.get(layer)

    def add(self, layer: int, found: dict[str, Any]) -> None:
        """Record that ``layer`` is finished and its weights are on the disk."""
        self._append({"layer": layer, **found})

    def _append(self, line: dict[str, Any]) -> None:
        with naming(self.path), self.path.open("ab") as stream:
            stream.write(json.dumps(line).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _whole_lines(self) -> list[Any]:
        """The complete lines; a last one that was cut off by a kill or a full disk is removed from the file."""
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if whole != text:
            os.truncate(self.path, len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if not all(isinstance(line["layer"], int) for line in lines[1:]):
                raise ValueError("a line of no layer")
            return lines
        except (ValueError, TypeError, KeyError, RecursionError):
            raise TsconvertError(f"{self.path}: is damaged; remove {self.path.parent} and start again") from None


def _settings(value: Any, earlier: Mapping[str, object], name: str = "") -> dict[str, object]:
    """A journal's head as one level of dotted names, without settings that are at their ``earlier`` default.

    Settings of parts are kept as text, "{'steps': 200, ...}", which is taken apart.
    """
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return {name: value}
    if not isinstance(value, dict):
        return {} if name in earlier and value == earlier[name] else {name: value}
    found: dict[str, object] = {}
    for key, each in value.items():
        found |= _settings(each, earlier, key if name in ("", "asked") else f"{name}.{key}")
    return found
