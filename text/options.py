"""The options that say which text a command reads, and how much of it."""

from collections.abc import Sequence
from typing import Any

import click

from ..common.options import COUNT, Decorator, Rule, setting
from .sources import Source, parse_source


class Data(click.ParamType):  # type: ignore[type-arg]
    """`PATH` or `PATH=WEIGHT`."""

    name = "data"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Source:  # noqa: ARG002
        """The source; a weight that is not a positive number is an error."""
        return value if isinstance(value, Source) else parse_source(value)


SOURCES = "text, .jsonl or .parquet files, a folder of them, a mixture file (.toml) or a data set's name"


def text_options(
    config: type, *, data: str, tokens: str = "Tokens to read.", rules: Sequence[Rule] = ()
) -> tuple[Decorator, ...]:
    """--data, --tokens and --context of ``config``."""
    return (
        setting(config, "data", type=Data(), metavar="DATA[=WEIGHT]", help=data, rules=rules),
        setting(config, "tokens", type=COUNT, help=tokens, rules=rules),
        setting(config, "context", type=COUNT, help="Tokens in a sequence.", rules=rules),
    )
