"""GGUF files by others, made of ours by gguf-py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def rewritten(
    path: Path, out: Path, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, np.ndarray] | None = None,
    drop: tuple[str, ...] = (), arch: str = "llama",
) -> Path:  # fmt: skip
    """The file with other keys and more tensors, without those to ``drop``, by gguf-py."""
    reader, keys, tensors = gguf.GGUFReader(path), dict(keys or {}), dict(tensors or {})
    writer = gguf.GGUFWriter(out, arch)
    for field in reader.fields.values():
        left = not field.name.startswith("GGUF.") and field.name not in {*keys, *drop, "general.architecture"}
        if left:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for name, value in keys.items():
        kinds[type(value)](name, value)
    for tensor in reader.tensors:
        if tensor.name not in {*tensors, *drop}:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
