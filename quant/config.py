"""What `export-gguf` and `quantize` are asked to do."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import TsconvertError
from ..text.sources import Source

TARGETS = ("llama.cpp", "powerinfer", "sparse")
COPY = "COPY"
"""The type_name that keeps every tensor as it is."""


@dataclass(frozen=True, kw_only=True)
class TypesConfig:
    """Which type each tensor gets: by a mix, by a size, or as a recipe says."""

    pure: bool = False
    """One type for all matrices, whatever the mix's rules say."""
    imatrix: Path | None = None
    """An importance matrix: which columns' errors cost most; for a size, what errors of each matrix cost. None measures
    that first, where a size is asked for."""
    data: tuple[Source, ...] = ()
    """The text on which it is measured; empty takes the embedded text."""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(pattern, type) for matrices whose GGUF name the pattern fits, the first match wins."""
    output_type: str | None = None
    """Type of `output.weight`, or of the embedding where it is the head as well."""
    embedding_type: str | None = None
    """Type of `token_embd.weight`; goes before the other two."""
    target_bytes: int | None = None
    """The file's size: the types are those that keep predictions closest to the model's."""
    target_bits: float | None = None
    """The same, in bits a weight of all tensors together."""
    target_token_bytes: int | None = None
    """The same, in bytes that a token reads."""
    density: float | None = None
    """The share of a sparse model's neurons that a token reads, for ``target_token_bytes``; None: as the predictors or
    the profile say."""
    candidates: tuple[str, ...] = ()
    """The types that a size is made of; empty: those that the engine computes fast."""
    recipe: Path | None = None
    """A file of an earlier export or quantize, or its JSON: every tensor gets the type that it has there."""

    threads: int | None = None
    """None takes the cores that the process may use."""

    @property
    def by_size(self) -> bool:
        """Whether a size is asked for."""
        return (self.target_bytes, self.target_bits, self.target_token_bytes) != (None, None, None)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(TypesConfig):
    """What to export, and how."""

    model: str | Path
    """A checkpoint folder, a GGUF file, an embedded model's name, or a hub id."""
    out: Path
    """The GGUF file to write."""
    type_name: str = "F16"
    """Weight matrices' types: a mix as llama-quantize knows them (F16, Q8_0, Q4_K_M, IQ3_XS, ...); norms and routers
    are always F32. PowerInfer's files have one type for all matrices."""
    target: str | None = None
    """`llama.cpp`, `powerinfer` or `sparse`; None: sparse for a sparse model, llama.cpp for any other."""
    predictors: Path | None = None
    """A predictor folder; None takes the predictors inside the checkpoint, if there are any."""
    predictor_type: str | None = None
    """Type of the predictors' matrices; None is what they were trained for, F16 for PowerInfer."""
    separate_predictors: bool = False
    """Put them into a file of their own, for engines that refuse tensors which they do not know."""
    profile: Path | None = None
    """How often neurons fire; None takes what the predictors' training counted, if they are given."""
    attention_share: float | None = None
    """Store attention's output matrix with a row an input, of which predicted mode reads this share: those of each
    token's largest inputs. None: the matrix as it is."""
    order: bool = True
    """Put neurons that fire often first, where a profile or predictors say which do."""
    vram_bytes: int | None = None
    """Memory of the GPU that PowerInfer is to use: the neurons that go there are chosen and written beside the file."""
    metadata: tuple[tuple[str, str], ...] = ()
    """(key, value) to add or replace; a new key is a string, or of another type as `u32:5`, `f32:0.5`, `bool:true`."""
    pre: str | None = None
    """The pre-tokenizer's name, for a byte-level BPE that is not recognized."""
    name: str | None = None
    """For `general.name`; None takes the folder's."""
    split_max_bytes: int | None = None
    """Write several files, none larger than this unless one tensor is; llama.cpp's names and keys."""
    dry_run: bool = False
    """Plan and check everything but the weights' values, write nothing."""

    def __post_init__(self) -> None:
        if self.target is not None and self.target not in TARGETS:
            raise TsconvertError(f"target is {self.target!r}: it must be one of {', '.join(TARGETS)}")
        if self.attention_share is not None and not 0 < self.attention_share <= 1:
            raise TsconvertError(f"attention share is {self.attention_share:g}: it must be above 0 and at most 1")
        if self.target == "powerinfer" and (self.by_size or self.recipe is not None):
            raise TsconvertError("--target powerinfer: its files have one type for all matrices; give --type instead")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(TypesConfig):
    """What to make of which file."""

    source: Path
    """A GGUF file, or the first shard of several."""
    out: Path
    type_name: str | None = None
    """A mix as llama-quantize knows them: Q4_K_M, Q8_0, ...; COPY keeps every tensor as it is. None where a size or a
    recipe is given, or with ``dry_run``, which then lists the sizes of all mixes."""
    allow_requantize: bool = False
    """Take tensors that are quantized already; their errors add up."""
    split_max_bytes: int | None = None
    """Write several files, none larger than this unless one tensor is."""
    dry_run: bool = False
    """Say what would be written, write nothing."""

    def __post_init__(self) -> None:
        if self.type_name is not None and self.type_name.upper() == COPY:
            object.__setattr__(self, "type_name", COPY)
        ways = [self.type_name is not None, self.by_size, self.recipe is not None]
        if sum(ways) > 1 or not (any(ways) or self.dry_run):
            raise TsconvertError(
                "what types to write: give one of --type, --target-size, --target-bits, --target-bytes-a-token and"
                " --recipe; --dry-run without one lists the sizes of all mixes"
            )
        named = {
            "--pure": self.pure, "--tensor-type": self.tensor_types, "--output-tensor-type": self.output_type,
            "--token-embedding-type": self.embedding_type, "--imatrix": self.type_name == COPY and self.imatrix,
        }  # fmt: skip
        given = [option for option, value in named.items() if value]
        if given and (self.type_name == COPY or not any(ways)):
            why = "--type COPY keeps every tensor as it is" if any(ways) else "sizes are listed of mixes as they are"
            raise TsconvertError(f"{', '.join(given)}: {why}; leave it out")
