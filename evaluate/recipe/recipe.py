"""The file that `convert`, `check` and `demo` read: what is run, and what may come out of it (docs/check.md)."""

import difflib
import re
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import TsconvertError
from ...common.units import parse_count

FORMAT_VERSION = 1
TOP_KEYS = ("format", "name", "out", "baseline", "variables", "stages", "outputs", "limits")
LIMIT_KEYS = ("min", "max", "equal", "same_as", "over", "drift", "why")
_NEVER_STAGES = ("check", "report", "convert", "demo")
_NAME = re.compile(r"[A-Za-z][\w-]*")
_VARIABLE = re.compile(r"\{(\w+)\}")
Options = Mapping[str, Collection[str]]
"""Command -> its options, such as `--out`."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command line of tsconvert."""

    name: str
    arguments: tuple[str, ...]
    """Without `tsconvert` and `--json`."""

    def __str__(self) -> str:
        return shlex.join(["tsconvert", *self.arguments])


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What one figure may be."""

    where: str
    """Name of the stage or output that has the figure."""
    path: tuple[str, ...]
    """Keys and indices within it."""
    minimum: float | None = None
    maximum: float | None = None
    equal: Any = None
    same_as: str | None = None
    """Another figure, which it must equal."""
    over: str | None = None
    """Another figure, which it is divided by first."""
    drift: float | None = None
    """Relative distance from the baseline that is allowed."""
    why: str = ""

    @property
    def figure(self) -> str:
        """Its name, such as `quality.perplexity / dense.perplexity`."""
        name = ".".join((self.where, *self.path))
        return f"{name} / {self.over}" if self.over else name

    @property
    def side(self) -> int:
        """Which drift counts: 1 (a rise) with a max and no min, -1 (a fall) with a min and no max, else 0 (both)."""
        return (self.maximum is not None) - (self.minimum is not None)

    @property
    def key(self) -> tuple[str, ...]:
        """Where it stands in the file."""
        return ("limits", self.where, *self.path)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that was read, every name in it checked."""

    path: Path
    text: str
    name: str
    out: Path
    """Folder in which the stages run and where their results go."""
    baseline: Path | None
    stages: tuple[Stage, ...]
    outputs: dict[str, Path] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    """As they are filled in."""

    def line(self, key: tuple[str, ...]) -> int:
        """The line of the file, from 1, on which a key stands; 1 where that cannot be told."""
        fitting = [
            (min(len(found), len(key)), -number)
            for number, found in _keys_by_line(self.text)
            if all(one == two for one, two in zip(found, key, strict=False))
        ]
        return -max(fitting, default=(0, -1))[1]


def read_recipe(
    path: Path, *, out: Path | None = None, variables: Mapping[str, str] | None = None, options: Options | None = None
) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        out: in place of the file's own.
        variables: in place of the file's own values.
        options: every command's options, so that a misspelt one is found before anything runs; None leaves that to
            the commands.

    Raises:
        TsconvertError: names the file, the key, and what to do.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise TsconvertError(f"{path}: no such file; give a check file (docs/check.md)") from None
    except (ValueError, RecursionError) as error:  # of which TOML and UTF-8 errors are kinds
        raise TsconvertError(f"{path}: is no TOML ({error}); correct it") from None
    try:
        return _recipe(path, text, table, out, variables or {}, options)
    except TsconvertError as error:
        raise TsconvertError(f"{path}: {error}") from None


def _recipe(
    path: Path,
    text: str,
    table: dict[str, Any],
    out: Path | None,
    variables: Mapping[str, str],
    options: Options | None,
) -> Recipe:
    """The recipe that ``table`` is; what is wrong is said without the file's name."""
    _require_known("the file", table, TOP_KEYS)
    if table.get("format") != FORMAT_VERSION:
        raise TsconvertError(
            f"format is {table.get('format')!r}; this tsconvert reads format = {FORMAT_VERSION}, so write that"
        )
    own = {key: str(value) for key, value in _table(table, "variables").items()}
    _require_known("[variables]", variables, own)
    values = {"here": str(path.parent.resolve()), **own, **variables}
    stages = tuple(_stage(name, command, values, options) for name, command in _table(table, "stages").items())
    names, outputs = [stage.name for stage in stages], _table(table, "outputs")
    for name, value in outputs.items():
        if not isinstance(value, str) or not _NAME.fullmatch(name) or name in names:
            raise TsconvertError(f"outputs.{name} must be a path under a name of its own; write it like that")
    names += outputs
    limits: list[Limit] = []
    for where, below in _table(table, "limits").items():
        if where not in names:
            raise TsconvertError(f"limits.{where}: there is no stage or output {where}; {nearest(where, names)}")
        if not isinstance(below, dict):
            raise TsconvertError(f"limits.{where} is {below!r}; make it a table, [limits.{where}]")
        limits += _limits(where, (), below, names)
    folder = out or path.parent / _filled("out", _string(table, "out", "check-out"), values)
    baseline = _string(table, "baseline", "")
    return Recipe(
        path=path, text=text, name=_string(table, "name", path.stem.removesuffix(".check")), out=folder,
        baseline=path.parent / baseline if baseline else None, stages=stages, limits=tuple(limits), variables=values,
        outputs={name: folder / _filled(f"outputs.{name}", value, values) for name, value in outputs.items()},
    )  # fmt: skip


def nearest(name: str, known: Collection[str]) -> str:
    """`did you mean X?`, or the choices if nothing is near."""
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"


def _require_known(where: str, table: Mapping[str, Any], keys: Collection[str]) -> None:
    for key in table:
        if key not in keys:
            raise TsconvertError(f"{where} has no key {key}; {nearest(key, keys)}")


def _table(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise TsconvertError(f"{key} is {value!r}; make it a table, [{key}]")
    return value


def _string(table: Mapping[str, Any], key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise TsconvertError(f"{key} is {value!r}; make it a string")
    return value


def _filled(key: str, text: str, values: Mapping[str, str]) -> str:
    """``text`` with its {variables} filled in."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise TsconvertError(f"{key}: there is no variable {match[1]}; {nearest(match[1], values)}")
        return values[match[1]]

    return _VARIABLE.sub(value, text)


def _stage(name: str, line: object, values: Mapping[str, str], options: Options | None) -> Stage:
    key = f"stages.{name}"
    if not _NAME.fullmatch(name) or name == "check":
        raise TsconvertError(f"{key}: a stage needs another name; use letters, digits, - and _, not check")
    if not isinstance(line, str):
        raise TsconvertError(f"{key} is {line!r}; make it a command as you would type it, in one string")
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        raise TsconvertError(f"{key}: {error}; close it") from None
    words = [_filled(key, word, values) for word in words]  # after the split: a path with spaces stays one argument
    words = words[1:] if words[:1] == ["tsconvert"] else words
    known = {command: names for command, names in (options or {}).items() if command not in _NEVER_STAGES}
    if options is not None and (words or [""])[0] not in known:
        command = words[0] if words else ""
        raise TsconvertError(f"{key}: {command!r} is no command of tsconvert; {nearest(command, known)}")
    for option in (word.partition("=")[0] for word in words[1:] if options is not None):
        if option.startswith("--") and option != "--" and option not in known[words[0]]:
            choice = nearest(option, known[words[0]])
            raise TsconvertError(f"{key}: {words[0]} has no option {option}; {choice}")
    return Stage(name=name, arguments=tuple(words))


def _limits(where: str, at: tuple[str, ...], table: dict[str, Any], names: list[str]) -> Iterator[Limit]:
    """The limits in a table: it is one itself as soon as it has a key whose value is no table."""
    if at and any(not isinstance(value, dict) for value in table.values()):
        yield _limit(where, at, table, names)
        return
    for key, value in table.items():
        if not isinstance(value, dict):
            name = ".".join(("limits", where, *at, key))
            raise TsconvertError(f"{name} is {value!r}; write what it may be, such as {{ max = {value!r} }}")
        yield from _limits(where, (*at, key), value, names)


def _limit(where: str, at: tuple[str, ...], table: dict[str, Any], names: list[str]) -> Limit:
    key = ".".join(("limits", where, *at))
    _require_known(key, table, LIMIT_KEYS)
    for name in ("same_as", "over"):
        other = table.get(name)
        if other is not None and (not isinstance(other, str) or other.partition(".")[0] not in names):
            raise TsconvertError(f"{key}.{name} is {other!r}; name a figure as STAGE.KEY, of {', '.join(names)}")
    minimum, maximum, drift = (_number(f"{key}.{name}", table.get(name)) for name in ("min", "max", "drift"))
    limit = Limit(
        where=where, path=at, minimum=minimum, maximum=maximum, equal=table.get("equal"), same_as=table.get("same_as"),
        over=table.get("over"), drift=drift, why=_string(table, "why", ""),
    )  # fmt: skip
    if all(value is None for value in (minimum, maximum, limit.equal, limit.same_as, drift)):
        raise TsconvertError(f"{key} limits nothing; give it min, max, equal, same_as or drift")
    if drift is not None and drift < 0:
        raise TsconvertError(f"{key}.drift is {drift:g}; it is a share of the baseline, such as 0.02")
    return limit


def _number(key: str, value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return float(parse_count(value))
        except TsconvertError as error:
            raise TsconvertError(f"{key}: {error}") from None
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TsconvertError(f"{key} is {value!r}; give a number, or a size such as '12M'")
    return value


def _keys_by_line(text: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, key) of every table and key."""
    header: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.lstrip().startswith("["):
                header = _only_path(tomllib.loads(line))
                yield number, header
            elif "=" in line:
                yield number, header + _only_path(tomllib.loads(line.partition("=")[0] + "= 0"))
        except tomllib.TOMLDecodeError:  # within a string of several lines
            continue


def _only_path(table: Any) -> tuple[str, ...]:
    path = []
    while isinstance(table, dict) and table:
        key, table = next(iter(table.items()))
        path.append(key)
    return tuple(path)
