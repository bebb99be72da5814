"""The command `imatrix`."""

from ...common.commands import Asked, command, heading
from ...common.options import OUT_FILE, SEED, argument, setting
from ...text.options import text_options
from .config import ImatrixConfig


@command(
    "imatrix",
    argument(ImatrixConfig, "model", "The checkpoint, dense or sparse: a folder, a GGUF file, a hub id, or an"
             " embedded model.", "MODEL"),
    heading("Output", setting(ImatrixConfig, "out", "The importance matrix, NAME.gguf; must not exist.",
                              kind=OUT_FILE)),
    heading("Text", *text_options(ImatrixConfig)),
    heading(
        "Machine",
        setting(ImatrixConfig, "device", "Device to compute on, such as cpu or cuda."),
        setting(ImatrixConfig, "seed", "Seed of the choice of text.", kind=SEED),
    ),
)  # fmt: skip
def imatrix(asked: Asked) -> None:
    """Measure which columns of the weights matter most, as an importance matrix in llama.cpp's form.

    export-gguf and quantize take it with --imatrix, and so does llama-quantize.
    """
    from .collect import imatrix as run_imatrix

    asked.emit(run_imatrix(asked.config(ImatrixConfig)))
