"""The options of export-gguf and quantize that say which type each tensor gets."""

from collections.abc import Sequence

from ..common.options import COUNT, Decorator, Pair, Rule, not_with, only_with, setting
from ..text.options import Data

_SIZES = ("target_size", "target_bits", "target_bytes_a_token")
_BY_SIZE = Rule(
    lambda given: any(given[name] is not None for name in _SIZES), "to a size only", "give --target-size"
)  # fmt: skip
_BY_MIX = Rule(
    lambda given: all(given[name] is None for name in (*_SIZES, "recipe")), "without a size and --recipe only",
    "leave those out",
)  # fmt: skip


def _without(*names: str) -> Rule:
    """The rule of an option that is refused beside sizes that stand before it."""
    return Rule(lambda given: all(given[name] is None for name in names), "without another size only", "leave that out")


_NO_RECIPE = not_with("--recipe")


def type_options(config: type, alike: Sequence[Rule] = ()) -> tuple[Decorator, ...]:
    """The options of ``config``'s mix and of single tensors' types; ``alike`` are more rules of --pure."""
    return (
        setting(config, "type_name", "Mix of types: F16, Q8_0, Q4_K_M, IQ3_XS, ...", "--type", rules=[_BY_MIX]),
        setting(config, "pure", "Give all matrices one type, whatever the mix's rules say; PowerInfer's files always"
                " have one.", rules=[_BY_MIX, *alike]),
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
                " size, such as 4.0G. What errors cost is measured first, unless --imatrix says it.", "--target-size",
                kind=COUNT, rules=rules),
        setting(config, "target_bits", "The same for so many bits a weight, such as 4.5.", "--target-bits",
                rules=[_without(*_SIZES[:1]), *rules]),
        setting(config, "target_token_bytes", "The same for so many bytes read a token, such as 1.2G.",
                "--target-bytes-a-token", kind=COUNT, rules=[_without(*_SIZES[:2]), *rules]),
        setting(config, "data", "Text on which to measure what errors cost: a .txt, .jsonl, .parquet or mixture (.toml)"
                " file, a folder, or a data set. Repeatable; default: the embedded text.", kind=Data(),
                metavar="DATA[=WEIGHT]", rules=[not_with("--imatrix"), _BY_SIZE]),
        setting(config, "density", "Share of a sparse model's neurons that a token reads, such as 0.12; default: as"
                " predictors or profile say.", rules=[only_with("--target-bytes-a-token")]),
        setting(config, "candidates", "A type that a size may be made of; default: those that the engine computes fast."
                " Repeatable.", "--candidate", metavar="TYPE", rules=[_BY_SIZE]),
        setting(config, "recipe", "Give every tensor the type that it has in this GGUF file, or in the JSON of an"
                " export.", rules=[_without(*_SIZES), *rules]),
    )  # fmt: skip
