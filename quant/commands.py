"""The command `quantize`."""

from ..common.commands import Asked, command, heading
from ..common.options import COUNT, OUT_FILE, PATH, THREADS, argument, setting
from .config import QuantizeConfig
from .options import size_options, type_options


@command(
    "quantize",
    argument(QuantizeConfig, "source", "A GGUF file; of a model in shards, the first.", "IN.gguf", PATH),
    heading(
        "Output",
        setting(QuantizeConfig, "out", "The GGUF file; must not exist.", kind=OUT_FILE),
        setting(QuantizeConfig, "split_max_bytes", "Write shards of at most this size, such as 5G.",
                "--split-max-size", kind=COUNT),
        setting(QuantizeConfig, "dry_run", "Say what would be written, and stop."),
    ),
    heading(
        "Types",
        *type_options(QuantizeConfig),
        setting(QuantizeConfig, "allow_requantize", "Take tensors that are quantized already; their errors add up."),
    ),
    heading("Types by size", *size_options(QuantizeConfig)),
    heading(
        "Machine",
        setting(QuantizeConfig, "threads", "Threads to use; default: the cores that the process may use.", "-t",
                "--threads", kind=THREADS),
    ),
)  # fmt: skip
def quantize(asked: Asked) -> None:
    """Write a GGUF file in other types, as llama-quantize would, in one pass.

    --type COPY merges or splits a file as it is; --dry-run without a type lists the sizes of all mixes. PATTERN is a
    regular expression or a shell pattern over names such as blk.0.ffn_down.weight.
    """
    from .quantize import quantize as run_quantize

    asked.emit(run_quantize(asked.config(QuantizeConfig)))
