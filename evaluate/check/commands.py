"""The command `check`."""

import click

from ...common.commands import Asked, command, heading
from ...common.options import OUT_FILE, OUT_FOLDER, PATH, Pair, argument, option, setting
from ..recipe.recipe import Options
from .config import CheckConfig


@command(
    "check",
    argument(CheckConfig, "spec", "TOML file with the commands to run, finished outputs to look at, and limits"
             " (docs/check.md).", "SPEC", PATH),
    heading(
        "Run",
        setting(CheckConfig, "out", "Folder in which the stages run; default: the spec's.", kind=OUT_FOLDER),
        option("Value of one of the spec's [variables]. Repeatable.", "--set", multiple=True, kind=Pair(),
               metavar="NAME=VALUE"),
        setting(CheckConfig, "resume", "Keep the stages that an earlier check finished."),
    ),
    heading(
        "Results",
        setting(CheckConfig, "junit", "Also write the lines as JUnit's XML.", kind=OUT_FILE),
        setting(CheckConfig, "baseline", "File with the figures of an earlier run; default: the spec's.",
                kind=OUT_FILE),
        setting(CheckConfig, "update_baseline", "Write this run's figures to the baseline, if all else passes."),
    ),
)  # fmt: skip
def check(asked: Asked) -> None:
    """Run a conversion with limits, for CI; exit code 1 with the lines that failed."""
    from .run import check as run_check

    report = run_check(asked.config(CheckConfig, variables=dict(asked["set"]), options=_all_options(asked.context)))
    asked.emit(report)
    report.require()


def _all_options(ctx: click.Context) -> Options:
    """The options of every command, so that a misspelt one is found before anything runs."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    commands = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    return {
        name: [option for param in command.params for option in (*param.opts, *param.secondary_opts)]
        for name, command in commands.items()
        if command is not None
    }
