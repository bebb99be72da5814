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


ONE_TEXT = "Text to read: a .txt, .jsonl, .parquet or mixture (.toml) file, a folder, or a data set. Repeatable."
CORPORA = "One corpus each: a .txt, .jsonl, .parquet or mixture (.toml) file, a folder, or a data set. Repeatable."


def text_options(
    config: type, *, data: str = ONE_TEXT, tokens: str = "Tokens of text to read.", rules: Sequence[Rule] = ()
) -> tuple[Decorator, ...]:
    """--data, --tokens and --context of ``config``; ``data`` and ``tokens`` are what help says of them."""
    return (
        setting(config, "data", data, kind=Data(), metavar="DATA[=WEIGHT]", rules=rules),
        setting(config, "tokens", tokens, kind=COUNT, rules=rules),
        setting(config, "context", "Tokens in a sequence.", kind=COUNT, rules=rules),
    )
