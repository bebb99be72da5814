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

from ....common.files import read_json_object
from .config import config_of
from .file import GgufFile
from .tokenizer import save_tokenizer

_SOURCE = "gguf_source.json"


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
    (folder / _SOURCE).write_text(json.dumps({"file": str(path)}))
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def source_of(folder: Path) -> Path | None:
    """The GGUF file that a folder of `folder_of` stands for; None for any other."""
    source = folder / _SOURCE
    return Path(str(read_json_object(source)["file"])) if source.is_file() else None
