"""The options of export-gguf and quantize that say which type each tensor gets."""

from collections.abc import Sequence

from ..common.options import COUNT, Decorator, Pair, Rule, not_with, only_with, setting

_SIZES = ("--target-size", "--target-bits", "--target-bytes-a-token")
_BY_SIZE = Rule(
    lambda given: any(given[name[2:].replace("-", "_")] is not None for name in _SIZES), "to a size only",
    "give --target-size",
)  # fmt: skip
_NO_RECIPE = not_with("--recipe")


def type_options(config: type, mix: Sequence[Rule] = (), alike: Sequence[Rule] = ()) -> tuple[Decorator, ...]:
    """The options of ``config``'s mix and of single tensors' types.

    Args:
        mix: more rules of --type.
        alike: more rules of --pure.
    """
    no_size = [not_with(size) for size in (*_SIZES, "--recipe")]
    return (
        setting(config, "type_name", "Mix of types: F16, Q8_0, Q4_K_M, IQ3_XS, ...", "--type", rules=[*no_size, *mix]),
        setting(config, "pure", "Give all matrices one type, whatever the mix's rules say; PowerInfer's files always"
                " have one.", rules=[*no_size, *alike]),
        setting(config, "tensor_types", "Type of the tensors whose name fits the pattern. Repeatable.", "--tensor-type",
                kind=Pair(last=True), metavar="PATTERN=TYPE", rules=[_NO_RECIPE]),
        setting(config, "output_type", "Type of the output matrix, or of the embedding where a mix has it for both.",
                "--output-tensor-type", rules=[_NO_RECIPE]),
        setting(config, "embedding_type", "Type of the embedding.", "--token-embedding-type", rules=[_NO_RECIPE]),
        setting(config, "imatrix", "Importance matrix, from imatrix or llama-imatrix, imatrix.dat too."),
    )  # fmt: skip


def size_options(config: type, rules: Sequence[Rule] = ()) -> tuple[Decorator, ...]:
    """The options of types that are chosen for a size, or as they were once."""
    return (
        setting(config, "target_bytes", "Choose types that keep predictions closest to the model's in a file of this"
                " size, such as 4.0G; needs an --imatrix with --slopes.", "--target-size", kind=COUNT,
                rules=[not_with(_SIZES[1]), not_with(_SIZES[2]), _NO_RECIPE, *rules]),
        setting(config, "target_bits", "The same for so many bits a weight, such as 4.5.", "--target-bits",
                rules=[not_with(_SIZES[2]), _NO_RECIPE, *rules]),
        setting(config, "target_token_bytes", "The same for so many bytes read a token, such as 1.2G.", _SIZES[2],
                kind=COUNT, rules=[_NO_RECIPE, *rules]),
        setting(config, "density", "Share of a sparse model's neurons that a token reads, such as 0.12; default: as"
                " predictors or profile say.", rules=[only_with(_SIZES[2])]),
        setting(config, "candidates", "A type that a size may be made of; default: those that the engine computes fast."
                " Repeatable.", "--candidate", metavar="TYPE", rules=[_BY_SIZE]),
        setting(config, "recipe", "Give every tensor the type that it has in this GGUF file, or in the JSON of an"
                " export.", rules=rules),
    )  # fmt: skip
