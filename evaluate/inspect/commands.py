"""The command `inspect`."""

import cloup

from ...common.commands import Asked, command, heading
from ...common.errors import TsconvertError
from ...common.options import option


@command(
    "inspect",
    cloup.argument("path", help="A folder, a file, or the name of an embedded model."),
    heading("Output", option("List every tensor.", "--tensors", is_flag=True)),
)
def inspect(asked: Asked) -> None:
    """Say what a checkpoint, predictor folder, profile or GGUF file holds."""
    from .outputs import inspect as run_inspect

    found = run_inspect(asked["path"], tensors=asked["tensors"])
    if asked["tensors"] and not found.tensors:
        raise TsconvertError(f"--tensors: {asked['path']} ({found.kind}) is not listed by tensor; leave it out")
    asked.emit(found)
