"""What the folders' commands.py are made of: headings of options, refusal of options without effect, and output."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import cloup

from . import command_line
from .errors import TsconvertError
from .options import Argument, Decorator, Option, Rule, option

Config = TypeVar("Config")


class Asked:
    """What a command was asked: its parameters by name, and the config dataclasses that they are fields of."""

    def __init__(self, ctx: click.Context) -> None:
        self.context = ctx

    def __getitem__(self, name: str) -> Any:
        return self.context.params[name]

    def given(self, *names: str) -> list[str]:
        """Those of the parameters that were given, rather than left at their defaults."""
        return [name for name in names if is_given(self.context, name)]

    def config(self, kind: type[Config], **more: Any) -> Config:
        """``kind`` with the fields that parameters were declared for, and ``more`` fields."""
        own = [param for param in self.context.command.params if isinstance(param, Option | Argument)]
        fields = {param.field: self[str(param.name)] for param in own if param.config is kind}
        return kind(**fields | more)

    def emit(self, result: Any) -> None:
        """Print what the command found: with --json ``result.to_json()`` and the command line, else ``str(result)``.

        Who calls the command in this process finds ``result`` as its context's object.
        """
        from .progress import speaks

        self.context.obj = result
        if speaks():
            command = {"command": command_line.typed()}
            as_json = self["json"]
            click.echo(json.dumps({**result.to_json(), **command}, ensure_ascii=False) if as_json else str(result))


class Command(cloup.Command):
    """A command that refuses options without effect, and calls its function with what was `Asked`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's, and then each option's rules; an option without effect is named before a missing one is."""
        try:
            rest = super().parse_args(ctx, args)
        except click.MissingParameter:
            refuse(self, ctx)
            raise
        if not ctx.resilient_parsing:
            refuse(self, ctx)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function."""
        assert self.callback is not None
        return ctx.invoke(self.callback, Asked(ctx))

    def get_default_option_group(self, ctx: click.Context, is_the_only_visible_option_group: bool = False) -> Any:
        """--json, --debug and --help stand under a heading of their own."""
        group = super().get_default_option_group(ctx, is_the_only_visible_option_group)
        group.title = "General"
        return group


def command(name: str, *parameters: Decorator) -> Callable[[Callable[[Asked], None]], Command]:
    """A command with these arguments and options, and those that every command has."""

    def decorator(function: Callable[[Asked], None]) -> Command:
        for parameter in reversed((*parameters, *_GENERAL)):
            parameter(function)
        return cloup.command(name, cls=Command)(function)

    return decorator


def heading(title: str, *options: Decorator) -> Decorator:
    """Options that stand together in the help, under ``title``."""
    return cloup.option_group(title, *options)


_GENERAL = (
    option("Print one JSON object on stdout and nothing else there.", "--json", is_flag=True),
    option("Show the traceback of an error.", "--debug", is_flag=True),
)


def refuse(command: click.Command, ctx: click.Context) -> None:
    """Refuse the options that were given and have no effect beside the others.

    Raises:
        TsconvertError: names all of them, and what each needs.
    """
    values = {str(param.name): _value(param, ctx) for param in command.params}
    offending: dict[Rule, list[str]] = {}
    for param in command.params:
        if isinstance(param, Option) and is_given(ctx, str(param.name)):
            broken = next((rule for rule in param.rules if not rule.holds(values)), None)
            if broken is not None:
                negated = values[str(param.name)] is False and param.secondary_opts
                offending.setdefault(broken, []).append(negated[0] if negated else max(param.opts, key=len))
    if offending:
        raise TsconvertError(_sentence(offending))


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether a parameter was given, rather than left at its default."""
    return ctx.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)


def _value(param: click.Parameter, ctx: click.Context) -> Any:
    """The parameter's value; where parsing stopped before it was reached, its default, or None without one."""
    if param.name in ctx.params:
        return ctx.params[param.name]
    default = param.get_default(ctx)
    return param.type_cast_value(ctx, default) if isinstance(default, str | int | float | tuple | Path) else None


def _sentence(offending: dict[Rule, list[str]]) -> str:
    parts = [
        f"{_listed(names)} {'apply' if len(names) > 1 else 'applies'} {rule.where}" for rule, names in offending.items()
    ]
    several = sum(map(len, offending.values())) > 1
    instead = _listed(list(dict.fromkeys(rule.instead for rule in offending if rule.instead)))
    instead = f", or {instead}".replace(" and give ", " and ") if instead else ""
    return f"{_listed(parts)}; leave {'them' if several else 'it'} out{instead}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1]))) if parts else ""
