"""The command `inspect`."""

import click

from ...common.commands import Asked, command, heading
from ...common.options import option


@command(
    "inspect",
    click.argument("path"),
    heading("Output", option("List every tensor.", "--tensors", is_flag=True)),
)
def inspect(asked: Asked) -> None:
    """Say what a checkpoint, predictor folder, profile or GGUF file holds."""
    from .outputs import inspect as run_inspect

    asked.emit(run_inspect(asked["path"], tensors=asked["tensors"]))
