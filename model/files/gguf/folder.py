"""A GGUF file as the Hugging Face folder that it was made of: everything but the weights, which stay in the file.

The folder is temporary, and made when it is first asked for; each process has its own.
"""

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

from ....common.progress import note
from ..found_files import GGUF_SOURCE
from .config import config_of
from .file import GgufFile
from .tensor import stored_dtype
from .tokenizer import save_tokenizer


def folder_of(path: Path) -> Path:
    """The folder of the checkpoint that the GGUF file at ``path`` was made of, without its weights.

    Raises:
        TsconvertError: the file is damaged, or of no kind that tsconvert makes a checkpoint of.
    """
    return _folder_of(path.absolute())


@functools.cache
def _folder_of(path: Path) -> Path:
    file = GgufFile(path)
    config = config_of(file)
    folder = Path(tempfile.mkdtemp(prefix="tsconvert-")) / (path.stem or "model")
    atexit.register(_remove, folder.parent, os.getpid())
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    save_tokenizer(file, folder)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id") if key in config}
    (folder / "generation_config.json").write_text(json.dumps(ids))
    (folder / GGUF_SOURCE).write_text(json.dumps({"file": str(path)}))
    blocks = {
        tensor.type_name for tensor in file.tensors.values() if stored_dtype(tensor.type_name) != tensor.type_name
    }
    decoded = f", {', '.join(sorted(blocks))} decoded to F32" if blocks else ""
    note(f"{path}: read as the {config['model_type']} checkpoint that it was made of{decoded}")
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
