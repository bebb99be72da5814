"""What `export-gguf` and `quantize` are asked to do."""

from dataclasses import dataclass
from pathlib import Path

from ..common.errors import TsconvertError

TARGETS = ("llama.cpp", "powerinfer", "sparse")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to export, and how."""

    model: str | Path
    """A checkpoint folder, a GGUF file, an embedded model's name, or a hub id."""
    out: Path
    """The GGUF file to write."""
    type_name: str = "F16"
    """Weight matrices' types: a mix as llama-quantize knows them (F16, Q8_0, Q4_K_M, IQ3_XS, ...); norms and routers
    are always F32. PowerInfer's files have one type for all matrices."""
    pure: bool = False
    """One type for all matrices, whatever the mix's rules say."""
    imatrix: Path | None = None
    """An importance matrix: which columns' errors cost most."""
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
    order: bool = True
    """Put neurons that fire often first, where a profile or predictors say which do."""
    vram_bytes: int | None = None
    """Memory of the GPU that PowerInfer is to use: the neurons that go there are chosen and written beside the file."""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(pattern, type) for matrices whose GGUF name the pattern fits, the first match wins."""
    metadata: tuple[tuple[str, str], ...] = ()
    """(key, value) to add or replace; a new key is a string, or of another type as `u32:5`, `f32:0.5`, `bool:true`."""
    pre: str | None = None
    """The pre-tokenizer's name, for a byte-level BPE that is not recognized."""
    name: str | None = None
    """For `general.name`; None takes the folder's."""
    split_max_bytes: int | None = None
    """Write several files, none larger than this unless one tensor is; llama.cpp's names and keys."""
    threads: int | None = None
    """None takes the cores that the process may use."""
    dry_run: bool = False
    """Plan and check everything but the weights' values, write nothing."""

    def __post_init__(self) -> None:
        if self.target is not None and self.target not in TARGETS:
            raise TsconvertError(f"target is {self.target!r}: it must be one of {', '.join(TARGETS)}")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """What to make of which file."""

    source: Path
    """A GGUF file, or the first shard of several."""
    out: Path
    type_name: str
    """A mix as llama-quantize knows them: Q4_K_M, Q8_0, ..."""
    imatrix: Path | None = None
    """An importance matrix: which columns' errors cost most."""
    tensor_types: tuple[tuple[str, str], ...] = ()
    """(pattern, type) for matrices whose name the pattern fits, the first match wins."""
    pure: bool = False
    """One type for all matrices, whatever the mix's rules say."""
    allow_requantize: bool = False
    """Take tensors that are quantized already; their errors add up."""
    split_max_bytes: int | None = None
    """Write several files, none larger than this unless one tensor is."""
    threads: int | None = None
    """None takes the cores that the process may use."""
    dry_run: bool = False
    """Say what would be written, write nothing."""
