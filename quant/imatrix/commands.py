"""The command `imatrix`."""

from pathlib import Path

import click

from ...common.commands import Asked, command, heading
from ...common.options import COUNT, OUT_FILE, SEED, argument, not_with, only_with, option, setting
from ...text.options import text_options
from .config import ImatrixConfig

_MEASURED = not_with("--show-statistics")
_SLOPES = only_with("--slopes")


@command(
    "imatrix",
    argument(ImatrixConfig, "model", "The checkpoint, dense or sparse: a folder, a GGUF file, a hub id, or an"
             " embedded model.", "MODEL"),
    heading(
        "Output",
        setting(ImatrixConfig, "out", "The importance matrix, NAME.gguf; must not exist.", kind=OUT_FILE,
                rules=[_MEASURED], required=False),
        option("Print figures on the importance matrix that MODEL is, and stop.", "--show-statistics", is_flag=True),
    ),
    heading("Text", *text_options(ImatrixConfig, rules=[_MEASURED])),
    heading(
        "Sizes of files",
        setting(ImatrixConfig, "slope_tokens", "Also measure what errors of each matrix cost, on so many tokens, such"
                " as 4K: for --target-size.", "--slopes", kind=COUNT, rules=[_MEASURED]),
        setting(ImatrixConfig, "resume", "Go on with the slopes where a run died.", rules=[_SLOPES]),
    ),
    heading(
        "Machine",
        setting(ImatrixConfig, "device", "Device to compute on, such as cpu or cuda.", rules=[_MEASURED]),
        setting(ImatrixConfig, "seed", "Seed of the choice of text.", kind=SEED, rules=[_MEASURED]),
    ),
)  # fmt: skip
def imatrix(asked: Asked) -> None:
    """Measure which columns of the weights matter most, as an importance matrix in llama.cpp's form.

    export-gguf and quantize take it with --imatrix, and so does llama-quantize.
    """
    if asked["show_statistics"]:
        from .show import statistics

        asked.emit(statistics(Path(asked["model"])))
        return
    if asked["out"] is None:
        raise click.UsageError("Missing option '--out'.")
    from .collect import imatrix as run_imatrix

    asked.emit(run_imatrix(asked.config(ImatrixConfig)))
