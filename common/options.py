"""Options of the commands: kinds of values, defaults taken from dataclasses, and rules on where each has an effect.

Click and cloup alone are imported, for `--help` goes through here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import click
import cloup

from .errors import TsconvertError
from .units import count_text, parse_count, parse_duration

Decorator = Callable[[Any], Any]


class Count(click.ParamType):  # type: ignore[type-arg]
    """A number with an optional K, M, G or B; with ``endless``, also -1."""

    name = "number"

    def __init__(self, *, endless: bool = False) -> None:
        self.endless = endless

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The whole number; anything else is a usage error."""
        try:
            if isinstance(value, int) or (self.endless and value.strip() == "-1"):
                return int(value)
            return parse_count(value)
        except TsconvertError as error:
            self.fail(str(error), param, ctx)

    def words(self, value: int | None) -> str | None:
        """A default as help shows it."""
        return None if value is None else count_text(value)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time such as 90s, 10m or 1h30m, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; anything else is a usage error."""
        try:
            return value if isinstance(value, int | float) else parse_duration(value)
        except TsconvertError as error:
            self.fail(str(error), param, ctx)

    def words(self, value: float | None) -> str | None:
        """A default as help shows it."""
        return None if value is None else f"{value:g}s"


class Rank(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or auto."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """The number, or None for auto; anything else is a usage error."""
        if value is None or value == "auto":
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither auto nor a whole number", param, ctx)

    def words(self, value: int | None) -> str:
        """A default as help shows it."""
        return "auto" if value is None else str(value)


class Precision(click.Choice):  # type: ignore[type-arg]
    """Whether to compute in bfloat16: bf16 is True, f32 False, auto None."""

    values: Mapping[str, bool | None] = {"auto": None, "bf16": True, "f32": False}

    def __init__(self) -> None:
        super().__init__(list(self.values))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | None:
        """True, False or None; another word is a usage error."""
        return value if value in (None, True, False) else self.values[super().convert(value, param, ctx)]

    def words(self, value: bool | None) -> str:
        """A default as help shows it."""
        return next(word for word, meant in self.values.items() if meant is value)


class Pair(click.ParamType):  # type: ignore[type-arg]
    """`KEY=VALUE`, split at the first `=`; with ``last`` at the last one, since patterns may hold some."""

    name = "pair"

    def __init__(self, *, last: bool = False) -> None:
        self.last = last

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Both sides; text without `=`, or with nothing before it, is a usage error."""
        if isinstance(value, tuple):
            return value
        key, equals, rest = value.rpartition("=") if self.last else value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r}: write it like {param.metavar if param else 'KEY=VALUE'}", param, ctx)
        return key, rest


COUNT = Count()
DURATION = Duration()
ENDLESS_COUNT = Count(endless=True)
RANK = Rank()
PRECISION = Precision()
OUT_FOLDER = click.Path(file_okay=False, path_type=Path)
OUT_FILE = click.Path(dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
THREADS = click.IntRange(1)
SEED = click.IntRange(0, 2**32 - 1)


@dataclass(frozen=True)
class Rule:
    """Where an option has an effect. Given anywhere else, it is refused by name."""

    holds: Callable[[Mapping[str, Any]], bool] = field(compare=False)
    """Takes the values of all parameters by name."""
    where: str
    """Behind `--name applies`, such as `to --recover full only`."""
    instead: str = ""
    """What to do rather than leave the option out, such as `give --recover full`."""


def only_with(option: str, *values: str) -> Rule:
    """The rule of an option that needs another one: with one of ``values``, or given at all."""
    name = _name(option)
    if not values:
        return Rule(lambda given: bool(given[name]), f"with {option} only", f"give {option}")
    named = f"{option} {' or '.join(str(value) for value in values)}"
    return Rule(lambda given: given[name] in values, f"to {named} only", f"give {option} {values[0]}")


def not_with(option: str, *values: str) -> Rule:
    """The rule of an option that another one makes useless: with one of ``values``, or given at all."""
    name = _name(option)
    named = f"{option} {' or '.join(values)}" if values else option
    return Rule(
        lambda given: given[name] not in values if values else not given[name], f"without {named} only",
        f"leave {option} out",
    )  # fmt: skip


def _name(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


class Option(cloup.Option):
    """An option that may be a field of a config dataclass, and may have rules."""

    def __init__(
        self, names: Sequence[str], config: type | None = None, field: str = "", rules: Sequence[Rule] = (), **more: Any
    ) -> None:
        super().__init__(names, **more)
        self.config, self.field, self.rules = config, field, tuple(rules)


def option(text: str, *names: str, kind: Any = None, rules: Sequence[Rule] = (), **more: Any) -> Decorator:
    """An option that is no field of a dataclass; ``text`` is what help says of it."""
    return cloup.option(*names, cls=Option, help=text, type=kind, rules=rules, **more)


def setting(
    config: type, name: str, text: str, *names: str, kind: Any = None, rules: Sequence[Rule] = (), **more: Any
) -> Decorator:
    """The option that sets the field ``name`` of the dataclass ``config``, and has its default or else is required.

    Args:
        text: what help says of it.
        names: of the option; by default the field's.
        kind: Click's type; by default what follows from the annotation: a flag for bool, repeatable for a tuple.
    """
    found = next(each for each in fields(config) if each.name == name)
    names = names or (f"--{name.replace('_', '-')}",)
    kind = kind or _kind_of(found.type)
    default = found.default if found.default_factory is MISSING else found.default_factory()
    shown = getattr(kind, "words", lambda value: value)(default)
    if default is MISSING:
        attributes: dict[str, Any] = {"required": True}
    elif isinstance(default, tuple):
        attributes = {"multiple": True, "default": default, "show_default": bool(default)}
    elif isinstance(default, bool):
        attributes = {"is_flag": True, "default": default, "show_default": "/" in names[-1]}
    else:
        attributes = {"default": shown, "show_default": shown is not None}
    if kind is RANK:
        attributes["metavar"] = "[auto|N]"
    attributes |= {"config": config, "field": name, "rules": rules, "help": text, "type": kind}
    return cloup.option(*names, cls=Option, **attributes | more)


def _kind_of(annotation: Any) -> Any:
    """Click's type for a field's annotation."""
    if get_origin(annotation) is UnionType:
        annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    return PATH if annotation is Path else annotation if annotation in (int, float, str) else None


class Argument(cloup.Argument):
    """An argument that is a field of a config dataclass."""

    def __init__(self, names: Sequence[str], config: type | None = None, field: str = "", **more: Any) -> None:
        super().__init__(names, **more)
        self.config, self.field = config, field


def argument(config: type, name: str, text: str, metavar: str, kind: Any = None, *, required: bool = True) -> Decorator:
    """The argument that sets the field ``name`` of the dataclass ``config``; ``text`` is what help says of it."""
    more = {"config": config, "field": name, "metavar": metavar, "help": text, "type": kind, "required": required}
    return cloup.argument(name, cls=Argument, **more)
