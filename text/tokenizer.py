"""The tokenizer of a checkpoint folder."""

from pathlib import Path
from typing import Any

from ..common.errors import TsconvertError, reason
from ..model.files.found_files import no_tokenizer


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a checkpoint folder; no code of the folder's is run.

    Raises:
        TsconvertError: there is none, or it cannot be read.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if (folder / "tokenizer.json").is_file():
        kind = PreTrainedTokenizerFast
    elif (folder / "tokenizer.model").is_file():
        kind = LlamaTokenizer
    else:
        raise no_tokenizer(folder)
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise TsconvertError(
            f"{folder}: the tokenizer cannot be read ({reason(error)}); copy the model's own there"
        ) from error
    tokenizer.model_max_length = 10**30  # rows are cut to the context later: no warning about long texts
    return tokenizer
