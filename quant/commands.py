"""The command `quantize`."""

from ..common.commands import Asked, command, heading
from ..common.options import COUNT, OUT_FILE, PATH, THREADS, Pair, argument, setting
from .config import QuantizeConfig


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
        setting(QuantizeConfig, "type_name", "Mix of types: F16, Q8_0, Q4_K_M, IQ3_XS, ...", "--type"),
        setting(QuantizeConfig, "pure", "Give all matrices one type, whatever the mix's rules say."),
        setting(QuantizeConfig, "tensor_types", "Type of the tensors whose name fits the pattern. Repeatable.",
                "--tensor-type", kind=Pair(last=True), metavar="PATTERN=TYPE"),
        setting(QuantizeConfig, "imatrix", "Importance matrix, from imatrix or llama-imatrix."),
        setting(QuantizeConfig, "allow_requantize", "Take tensors that are quantized already; their errors add up."),
    ),
    heading(
        "Machine",
        setting(QuantizeConfig, "threads", "Threads to use; default: the cores that the process may use.", "-t",
                "--threads", kind=THREADS),
    ),
)  # fmt: skip
def quantize(asked: Asked) -> None:
    """Write a GGUF file in other types, as llama-quantize would, in one pass.

    PATTERN is a regular expression or a shell pattern over names such as blk.0.ffn_down.weight.
    """
    from .quantize import quantize as run_quantize

    asked.emit(run_quantize(asked.config(QuantizeConfig)))
